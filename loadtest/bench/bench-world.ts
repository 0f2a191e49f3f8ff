// Owns what the benchmarks of VMs start from: the world of the VM tests on the hypervisor that `auto` would take here.
// Invariant: the world is closed with the run. The trial for KVM is remembered beside the guest image.
import { join } from 'node:path';
import { defaultCacheDir } from '../../images/image.ts';
import { reclaim } from '../../pool/host/reclaim.ts';
import { chooseHypervisor, findCloudHypervisor } from '../../pool/hypervisor/choose.ts';
import type { Accelerator } from '../../pool/hypervisor/qemu/command-line.ts';
import { createQemuHypervisor } from '../../pool/hypervisor/qemu/qemu-hypervisor.ts';
import { silentLog } from '../../shared/log.ts';
import { openVmWorld, type VmWorld } from '../../test/vm/vm-world.ts';
import type { Bench, Option, Outcome } from './benchmark.ts';

export const acceleratorOption: Record<'accelerator', Option> = {
  accelerator: { default: 'auto', description: 'auto, tcg or kvm' },
};

export interface BenchWorld extends VmWorld {
  accelerator: Accelerator;
  /** What the outcome says of the machine. */
  facts: Pick<Outcome, 'hypervisor' | 'accelerator'>;
}

export async function openBenchWorld(bench: Bench): Promise<BenchWorld> {
  const wanted = bench.text('accelerator');
  let accelerator: Accelerator = wanted === 'kvm' ? 'kvm' : 'tcg';
  bench.progress('preparing the guest image');
  const world = await openVmWorld({
    async chooseHypervisor(image, paths) {
      if (wanted !== 'auto') return createQemuHypervisor({ accelerator, log: silentLog });
      const remembered = join(defaultCacheDir(), 'bench-hypervisor.json');
      const { hypervisor, choice, close } = await chooseHypervisor({
        image,
        paths: { ...paths, hypervisorChoice: remembered },
        log: silentLog,
        cloudHypervisor: await findCloudHypervisor(process.env.THAW_CLOUD_HYPERVISOR),
        onProgress: bench.progress,
      });
      bench.cleanup.defer('hypervisor', close);
      accelerator = choice.accelerator;
      return hypervisor;
    },
  });
  bench.cleanup.defer('VMs and their files', async () => {
    // A run that a signal cuts short has VMs under way that only their records name.
    await reclaim({ paths: world.paths, log: silentLog });
    await world.close();
  });
  const { hypervisor, hypervisorVersion } = await world.hypervisor.compatibility(world.image);
  return { ...world, accelerator, facts: { hypervisor: `${hypervisor} ${hypervisorVersion}`, accelerator } };
}

/** A small function as people write them, ready as a snapshot. */
export async function buildHello(world: BenchWorld, memoryMb = 256): Promise<string> {
  const manifest = { name: 'hello', runtime: 'node', memoryMb } as const;
  return world.build(manifest, { 'index.mjs': helloFunction });
}

export const helloFunction = `
export default { fetch: (request) => Response.json({ hello: new URL(request.url).pathname }) };
`;
