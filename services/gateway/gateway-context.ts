// Owns what every route of one gateway shares. Made once by app.ts; routes take it and construct nothing.
import type { Log } from '../../shared/log.ts';
import type { Deployments } from './deployments.ts';
import type { GatewayConfig } from './gateway-config.ts';
import type { NodeClient } from './node-client.ts';
import type { StateStore } from './state/state-store.ts';

export interface GatewayContext {
  node: NodeClient;
  state: StateStore;
  log: Log;
  config: GatewayConfig;
  version: string;
  deployments: Deployments;
  traffic: Traffic;
}

/** What is in work now, and whether more may come. */
export interface Traffic {
  inFlight: number;
  draining: boolean;
  /** From the start until function versions are servable again. */
  resuming: boolean;
  /** What went wrong while resuming, for /readyz. */
  notes: string[];
}
