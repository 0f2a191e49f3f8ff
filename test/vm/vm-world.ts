// Owns what every VM test starts from: a data directory of its own, the cached guest image, a QEMU driver, a builder
// and a factory. Invariant: close() leaves no process and no file.

import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ensureImage } from '../../images/image.ts';
import { type Paths, pathsOf } from '../../pool/host/paths.ts';
import type { GuestImage, Hypervisor } from '../../pool/hypervisor/hypervisor.ts';
import { createQemuHypervisor } from '../../pool/hypervisor/qemu/qemu-hypervisor.ts';
import { LocalSnapshotBuilder } from '../../pool/snapshot-builder.ts';
import type { Vm } from '../../pool/vm.ts';
import { LocalVmFactory } from '../../pool/vm-factory.ts';
import { type FunctionManifest, parseFunctionManifest } from '../../shared/function-manifest.ts';
import { silentLog } from '../../shared/log.ts';
import { packTar } from './pack-tar.ts';

export interface VmWorld {
  dataDir: string;
  paths: Paths;
  image: GuestImage;
  hypervisor: Hypervisor;
  builder: LocalSnapshotBuilder;
  factory: LocalVmFactory;
  /** Builds a function from file contents by name. @returns its snapshot id. */
  build(manifest: FunctionManifest, files: Record<string, string>): Promise<string>;
  restore(snapshotId: string): Promise<Vm>;
  close(): Promise<void>;
}

export interface VmWorldOptions {
  /** Another driver than QEMU under emulation, which runs everywhere. */
  chooseHypervisor?: (image: GuestImage, paths: Paths) => Promise<Hypervisor>;
}

export async function openVmWorld(options: VmWorldOptions = {}): Promise<VmWorld> {
  const dataDir = await mkdtemp(join(tmpdir(), 'thaw-vm-'));
  const paths = pathsOf(dataDir);
  const image = await ensureImage();
  const hypervisor =
    (await options.chooseHypervisor?.(image, paths)) ??
    createQemuHypervisor({ accelerator: 'tcg', log: silentLog });
  const parts = { hypervisor, image, paths, log: silentLog };
  const builder = new LocalSnapshotBuilder(parts);
  const factory = new LocalVmFactory(parts);
  const vms: Vm[] = [];
  return {
    dataDir,
    paths,
    image,
    hypervisor,
    builder,
    factory,
    async build(manifest, files) {
      const bundle = await packTar(files);
      const bundleSha256 = createHash('sha256').update(bundle).digest('hex');
      const bundlePath = join(dataDir, `${bundleSha256}.tar`);
      await writeFile(bundlePath, bundle);
      const request = { manifest: parseFunctionManifest(manifest), bundlePath, bundleSha256 };
      return builder.buildFunction(request, AbortSignal.timeout(180_000));
    },
    async restore(snapshotId) {
      const vm = await factory.restore(snapshotId, AbortSignal.timeout(60_000));
      vms.push(vm);
      return vm;
    },
    async close() {
      await Promise.all(vms.map((vm) => vm.destroy()));
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}
