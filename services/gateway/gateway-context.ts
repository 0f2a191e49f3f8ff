// Owns what every route of one gateway shares, and the checks that all paths of a kind make before they begin.
// Made once by app.ts; routes take it and construct nothing.
import type { IncomingHttpHeaders } from 'node:http';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { requireApiKey } from './authenticate.ts';
import type { Deployments } from './deployments.ts';
import type { GatewayConfig } from './gateway-config.ts';
import type { NodeClient } from './node-client.ts';
import type { Sandboxes } from './sandboxes.ts';
import type { StateStore } from './state/state-store.ts';
import type { TemplateBuilds } from './template-builds.ts';
import type { Templates } from './templates.ts';

export interface GatewayContext {
  node: NodeClient;
  state: StateStore;
  log: Log;
  config: GatewayConfig;
  version: string;
  deployments: Deployments;
  sandboxes: Sandboxes;
  templates: Templates;
  templateBuilds: TemplateBuilds;
  traffic: Traffic;
}

/** What is in work now, and whether more may come. */
export interface Traffic {
  /** Requests and upgraded connections on the data paths. */
  inFlight: number;
  draining: boolean;
  /** From the start until function versions are servable again. */
  resuming: boolean;
  /** What went wrong while resuming, for /readyz. */
  notes: string[];
}

/** @throws ThawError `shutting-down` | `overloaded`. */
export function requireRoom({ traffic, config }: GatewayContext): void {
  requireOpen(traffic);
  if (traffic.inFlight > config.maxInFlight)
    throw new ThawError('overloaded', `${config.maxInFlight} requests are in work; the limit is reached`);
}

/** What every management route asks before anything else. @throws ThawError `unauthenticated` | `shutting-down`. */
export function requireCaller({ state, traffic }: GatewayContext, headers: IncomingHttpHeaders): void {
  requireApiKey(headers, state.keys);
  requireOpen(traffic);
}

function requireOpen({ draining }: Traffic): void {
  if (draining) throw new ThawError('shutting-down', 'this gateway is draining');
}
