// Owns an old template: early reseeds of the guest's kernel, every few seconds at first, would hide repeats.
// Invariant: the old template stands where the builder looks for this shape's, so that functions are built from it.
import { mkdir, rename, rm } from 'node:fs/promises';
import { ControlClient } from '../../pool/guest/control-client.ts';
import { handshake } from '../../pool/guest/handshake.ts';
import { capturedFilesIn } from '../../pool/host/paths.ts';
import { recordFormat, writeRecord } from '../../pool/snapshot/record.ts';
import { newVmId } from '../../shared/ids.ts';
import type { VmWorld } from './vm-world.ts';

const shape = { memoryMb: 256, vcpus: 1 };
/** From here on the kernel reseeds by itself only every 30 s or more: far longer than a deploy and a first request. */
const templateAgeMs = 60_000;

/** Puts an old template where the builder looks for this shape's: booted here, left running until it has aged. */
export async function ageTemplate(world: VmWorld): Promise<void> {
  const snapshotId = await world.builder.ensureTemplate(shape);
  const dir = world.paths.snapshotDir(snapshotId);
  const old = `${dir}.partial`;
  const vmId = newVmId();
  const runDir = world.paths.vmDir(vmId);
  await mkdir(old, { recursive: true });
  await mkdir(runDir, { recursive: true });
  const files = capturedFilesIn(old);
  const machine = await world.hypervisor.boot({
    vmId,
    shape,
    image: world.image,
    runDir,
    pagesPath: files.pagesPath,
  });
  try {
    const control = new ControlClient(await machine.openControl());
    await handshake(control, vmId, '', 120_000);
    await agedTo(control, templateAgeMs);
    const nonce = '0'.repeat(32);
    await control.request({ op: 'seal', nonce }, 10_000);
    await machine.captureInPlace(files);
    const compatibility = await world.hypervisor.compatibility(world.image);
    const createdAt = new Date().toISOString();
    await writeRecord(old, {
      format: recordFormat,
      snapshotId,
      kind: 'template',
      names: [],
      depth: 0,
      form: 'whole',
      dir,
      nonce,
      ...shape,
      compatibility,
      createdAt,
      sizeBytes: 0,
    });
  } finally {
    await machine.destroy();
  }
  await rm(dir, { recursive: true });
  await rename(old, dir);
}

async function agedTo(control: ControlClient, ageMs: number): Promise<void> {
  for (;;) {
    const { uptimeMs } = await control.request<{ uptimeMs: number }>({ op: 'health' }, 10_000);
    if (uptimeMs >= ageMs) return;
    await new Promise((resolve) => setTimeout(resolve, ageMs - uptimeMs));
  }
}
