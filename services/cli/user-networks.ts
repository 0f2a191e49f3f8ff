// Owns whether sandboxes on QEMU get a way out: network slots, where this host can make them, tried once at the start.
// Refuses to own what may pass them (pool/host/network-rules.ts). Invariant: a host that can make none has closed
// sandboxes, and says so.

import { NamespaceSlots, type NetworkSlots } from '../../pool/host/network-slots.ts';
import type { Paths } from '../../pool/host/paths.ts';
import type { Config } from '../../shared/config.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';

export interface UserNetworks {
  slots: NetworkSlots | undefined;
  /** For /readyz and `thaw doctor`: why there is no way out, where one was wanted. */
  notes: string[];
}

export async function openUserNetworks(config: Config, paths: Paths, log: Log): Promise<UserNetworks> {
  if (config.egress === 'closed') return { slots: undefined, notes: [] };
  if (process.getuid?.() !== 0) return closed('network namespaces need root');
  const { resolver } = config;
  const slots = new NamespaceSlots({ recordsDir: paths.networkDir, log, kind: 'user', resolver });
  try {
    slots.giveBack(await slots.take());
    return { slots, notes: [] };
  } catch (error) {
    await slots.close();
    return closed((error as Error).message);
  }
}

function closed(reason: string): UserNetworks {
  metrics.fallbacks.inc({ kind: 'no-egress' });
  return { slots: undefined, notes: [`sandboxes have no way out: ${reason}`] };
}
