// Rows of the failure matrix and many rounds of making and ending clones, on real Cloud Hypervisor with the real guest;
// `npm run test:metal` runs it where the host has no KVM.
import assert from 'node:assert/strict';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { NamespaceSlots } from '../../pool/host/network-slots.ts';
import { capturedFilesIn } from '../../pool/host/paths.ts';
import {
  type CloudHypervisor,
  createCloudHypervisor,
} from '../../pool/hypervisor/cloud-hypervisor/cloud-hypervisor.ts';
import { readRecord } from '../../pool/snapshot/record.ts';
import { newVmId } from '../../shared/ids.ts';
import { silentLog } from '../../shared/log.ts';
import { binaryPath, whyNotHere } from './cloud-hypervisor-here.ts';
import { describeRows, leftovers, type RowsWorld } from './cloud-hypervisor-rows.ts';
import { eventually } from './thaw-process.ts';
import { openVmWorld } from './vm-world.ts';

/** A round under emulation takes a second; one leak in a hundred would show as well as in a thousand. */
const rounds = 100;
const inParallel = 4;

async function openWorld(): Promise<RowsWorld> {
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

const reason = await whyNotHere();
if (reason !== undefined) {
  describe('rows of the failure matrix on Cloud Hypervisor', () => {
    it('runs on this machine', { skip: reason }, () => {});
  });
} else {
  describeRows(openWorld, 'runs');

  describe('many rounds of making and ending clones', () => {
    let world: RowsWorld;
    before(async () => {
      world = await openWorld();
    });
    after(() => world?.close());

    it(`${rounds} leave no process, namespace, link, control group or file`, async () => {
      const { hypervisor, paths, image } = world;
      const before = await leftovers();
      const snapshotId = await world.builder.ensureTemplate({ memoryMb: 256, vcpus: 1 });
      const record = (await readRecord(paths.snapshotDir(snapshotId)))!;
      const from = capturedFilesIn(record.dir);
      let started = 0;
      const pids: number[] = [];
      const worker = async () => {
        while (started++ < rounds) {
          const vmId = newVmId();
          const runDir = paths.vmDir(vmId);
          await mkdir(runDir, { recursive: true });
          const machine = await hypervisor.restore({
            vmId,
            shape: record,
            image,
            runDir,
            from,
            memory: 'private',
          });
          pids.push(machine.pid);
          await machine.destroy();
          await rm(runDir, { recursive: true });
        }
      };
      await Promise.all(Array.from({ length: inParallel }, worker));
      assert.equal(pids.length, rounds);
      await hypervisor.close();
      for (const pid of pids) assert.throws(() => process.kill(pid, 0), { code: 'ESRCH' });
      // Slots rest for a while before they are removed.
      await eventually('nothing left', async () => {
        const now = await leftovers();
        return now.every((each) => before.includes(each)) && (await readdir(paths.vmsDir)).length === 0;
      });
    });
  });
}
