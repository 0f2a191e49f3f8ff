// Owns a clone for benchmarks of snapshots: restored as sandboxes are, with a shell inside and its machine at hand.
// Refuses to own what is measured. Invariant: it is gone with the given cleanup.
import { mkdir, rm } from 'node:fs/promises';
import { ControlClient } from '../../pool/guest/control-client.ts';
import { GuestShell } from '../../pool/guest/guest-shell.ts';
import { handshake } from '../../pool/guest/handshake.ts';
import type { Machine } from '../../pool/hypervisor/hypervisor.ts';
import { captureVm } from '../../pool/snapshot/capture.ts';
import { takeCloneFiles } from '../../pool/snapshot/clone-files.ts';
import type { SnapshotRecord } from '../../pool/snapshot/record.ts';
import type { Cleanup } from '../../shared/cleanup.ts';
import { newVmId } from '../../shared/ids.ts';
import type { BenchWorld } from './bench-world.ts';

const handshakeTimeoutMs = 30_000;

export interface CapturedGuest {
  machine: Machine;
  shell: GuestShell;
  /** A snapshot while it runs on. */
  capture(onStage: (stage: string, elapsedMs: number) => void): Promise<SnapshotRecord>;
}

export async function openGuest(
  world: BenchWorld,
  snapshotId: string,
  cleanup: Cleanup,
): Promise<CapturedGuest> {
  const { hypervisor, image, paths } = world;
  const { library } = world.factory;
  const vmId = newVmId();
  const runDir = paths.vmDir(vmId);
  await mkdir(runDir, { recursive: true, mode: 0o700 });
  cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
  const files = await takeCloneFiles(library, snapshotId, runDir);
  const { record: shape, from } = files;
  const machine = await hypervisor.restore({ vmId, shape, image, runDir, from, memory: 'private' });
  cleanup.defer('machine', () => machine.destroy());
  const control = new ControlClient(await machine.openControl());
  const { secret, ports } = await handshake(control, vmId, shape.nonce, handshakeTimeoutMs);
  const shell = await GuestShell.open(await machine.addressOf(ports.agent), secret);
  cleanup.defer('shell', () => shell[Symbol.asyncDispose]());
  const onLost = (reason: string) => {
    throw new Error(`the guest was lost: ${reason}`);
  };
  const source = { machine, control, files, onLost };
  return {
    machine,
    shell,
    capture: (onStage) => captureVm(library, source, { resume: true, onStage }),
  };
}
