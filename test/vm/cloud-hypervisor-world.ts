// Owns the world of VM tests on real Cloud Hypervisor: drivers made in it are closed with it.
import { join } from 'node:path';
import { NamespaceSlots } from '../../pool/host/network-slots.ts';
import {
  type CloudHypervisor,
  createCloudHypervisor,
} from '../../pool/hypervisor/cloud-hypervisor/cloud-hypervisor.ts';
import { silentLog } from '../../shared/log.ts';
import { binaryPath } from './cloud-hypervisor-here.ts';
import type { RowsWorld } from './cloud-hypervisor-rows.ts';
import { openVmWorld } from './vm-world.ts';

export async function openCloudHypervisorWorld(): Promise<RowsWorld> {
  const drivers: CloudHypervisor[] = [];
  const driver = (options: object, paths = world.paths) => {
    const made = createCloudHypervisor({ program: [binaryPath!], paths, log: silentLog, ...options });
    drivers.push(made);
    return made;
  };
  const world = await openVmWorld({ chooseHypervisor: async (_image, paths) => driver({}, paths) });
  return {
    ...world,
    hypervisor: world.hypervisor as CloudHypervisor,
    unready() {
      const recordsDir = join(world.dataDir, 'network-unready');
      return driver({ spares: 0, slots: new NamespaceSlots({ recordsDir, log: silentLog, ready: 0 }) });
    },
    async close() {
      for (const each of drivers) await each.close();
      await world.close();
    },
  };
}
