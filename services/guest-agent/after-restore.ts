// Owns the steps that make a resumed copy of memory a machine of its own, in their order.
// Refuses to own when they run (main.ts) and the calls themselves (kernel-calls.ts, reseed-server.ts).
// Invariant: entropy first; nothing that needs uniqueness runs before it, and any failed step fails the restore.
import { hash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import type { RestoreRequest } from '../../shared/agent-protocol.ts';
import { endInheritedConnections } from './inherited-connections.ts';
import { reseedKernel, setHostname, setWallClock } from './kernel-calls.ts';
import { reseedOpenssl } from './native-library.ts';
import type { ReseedServer } from './reseed-server.ts';
import type { Settings } from './settings.ts';

/** A process that does not confirm within this time is hung: its VM is not fit to be handed out. */
const reseedTimeoutMs = 2_000;

export async function afterRestore(
  request: RestoreRequest,
  settings: Settings,
  reseeds: ReseedServer,
): Promise<void> {
  const seed = Buffer.from(request.seed, 'base64');
  // Each consumer gets its own derivation: knowing one tells nothing of the others.
  const derive = (purpose: string) => hash('sha256', Buffer.concat([Buffer.from(purpose), seed]), 'buffer');
  // A host process has the host's entropy, time and name, and was never copied.
  if (settings.mode === 'guest') {
    reseedKernel(derive('kernel'));
    setWallClock(request.wallClockMs);
    setIdentity(request.hostname, request.machineId);
    endInheritedConnections();
  }
  reseedOpenssl(derive('openssl'));
  await reseeds.reseedAll(derive('processes'), reseedTimeoutMs);
}

function setIdentity(hostname: string, machineId: string): void {
  setHostname(hostname);
  writeFileSync('/etc/hostname', `${hostname}\n`);
  writeFileSync('/etc/machine-id', `${machineId}\n`);
  writeFileSync('/etc/hosts', hostsWith(readFileSync('/etc/hosts', 'utf8'), hostname));
}

/** sudo looks its own host up: the line of the last name gives way to the new one, others stay. */
export function hostsWith(hosts: string, hostname: string): string {
  const others = hosts.split('\n').filter((line) => line !== '' && !line.startsWith('127.0.1.1'));
  return `${[...others, `127.0.1.1 ${hostname}`].join('\n')}\n`;
}
