// The rows of the failure matrix on Cloud Hypervisor that need no guest code, on the stand-in for its API.

import { StandInWorld } from '../../pool/hypervisor/cloud-hypervisor/stand-in-world.ts';
import { LocalSnapshotBuilder } from '../../pool/snapshot-builder.ts';
import { LocalVmFactory } from '../../pool/vm-factory.ts';
import { silentLog } from '../../shared/log.ts';
import { describeRows } from './cloud-hypervisor-rows.ts';

describeRows(async () => {
  const world = await StandInWorld.open();
  const { paths, image, hypervisor } = world;
  const parts = { paths, image, hypervisor, log: silentLog };
  return {
    ...parts,
    dataDir: paths.dataDir,
    builder: new LocalSnapshotBuilder(parts),
    factory: new LocalVmFactory(parts),
    unready: () => world.driver(0),
    build: () => Promise.reject(new Error('the stand-in runs no functions')),
    restore: () => Promise.reject(new Error('rows restore by themselves')),
    close: () => world[Symbol.asyncDispose](),
  };
}, 'stands-in');
