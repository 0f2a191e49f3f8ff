// Owns what every route of one gateway shares, and the one check that all data paths make before they begin.
// Made once by app.ts; routes take it and construct nothing.
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Deployments } from './deployments.ts';
import type { GatewayConfig } from './gateway-config.ts';
import type { NodeClient } from './node-client.ts';
import type { Sandboxes } from './sandboxes.ts';
import type { StateStore } from './state/state-store.ts';

export interface GatewayContext {
  node: NodeClient;
  state: StateStore;
  log: Log;
  config: GatewayConfig;
  version: string;
  deployments: Deployments;
  sandboxes: Sandboxes;
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
  if (traffic.draining) throw new ThawError('shutting-down', 'this gateway is draining');
  if (traffic.inFlight > config.maxInFlight)
    throw new ThawError('overloaded', `${config.maxInFlight} requests are in work; the limit is reached`);
}
