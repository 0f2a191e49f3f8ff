// Owns the steps that make a resumed copy of memory a machine of its own, in their order.
// Refuses to own when they run (main.ts) and the calls themselves (kernel-calls.ts, reseed-server.ts).
// Invariant: entropy first; nothing that needs uniqueness runs before it, and any failed step fails the restore.
import { createHash } from 'node:crypto';
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import type { RestoreRequest } from '../../shared/agent-protocol.ts';
import { endInheritedConnections } from './inherited-connections.ts';
import { reseedKernel, setWallClock } from './kernel-calls.ts';
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
  const derive = (purpose: string) => createHash('sha256').update(purpose).update(seed).digest();
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

const identityPaths = { hostname: '/etc/hostname', machineId: '/etc/machine-id', hosts: '/etc/hosts' };

function setIdentity(hostname: string, machineId: string): void {
  writeFileSync('/proc/sys/kernel/hostname', hostname);
  overwrite(identityPaths.hostname, `${hostname}\n`);
  overwrite(identityPaths.machineId, `${machineId}\n`);
  overwrite(identityPaths.hosts, hostsWith(readFileSync(identityPaths.hosts, 'utf8'), hostname));
}

/** Into the caches that were just dropped: what a clone writes before it answers, it need not wait for its disk for. */
export function readIdentity(): void {
  for (const path of Object.values(identityPaths)) if (existsSync(path)) readFileSync(path);
}

/** In place: text of the length that was there takes no block of the disk and frees none. */
export function overwrite(path: string, text: string): void {
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o644);
  try {
    const sizeBytes = writeSync(fd, text);
    if (fstatSync(fd).size !== sizeBytes) ftruncateSync(fd, sizeBytes);
  } finally {
    closeSync(fd);
  }
}

/** sudo looks its own host up: the line of the last name gives way to the new one, others stay. */
export function hostsWith(hosts: string, hostname: string): string {
  const others = hosts.split('\n').filter((line) => line !== '' && !line.startsWith('127.0.1.1'));
  return `${[...others, `127.0.1.1 ${hostname}`].join('\n')}\n`;
}
