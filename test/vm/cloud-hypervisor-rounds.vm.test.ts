// Many rounds of making and ending clones on real Cloud Hypervisor, after which nothing may be left; `npm run test:metal`
// runs it where the host has no KVM. Environment: CLONE_ROUNDS, how many.
import assert from 'node:assert/strict';
import { mkdir, readdir, rm } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { capturedFilesIn } from '../../pool/host/paths.ts';
import { readRecord } from '../../pool/snapshot/record.ts';
import { newVmId } from '../../shared/ids.ts';
import { whyNotHere } from './cloud-hypervisor-here.ts';
import { leftovers, type RowsWorld } from './cloud-hypervisor-rows.ts';
import { openCloudHypervisorWorld } from './cloud-hypervisor-world.ts';
import { eventually } from './thaw-process.ts';

/** A round under emulation takes a second; one leak in a hundred would show as well as in a thousand. */
const rounds = Number(process.env.CLONE_ROUNDS ?? 100);
const inParallel = 4;
const reason = await whyNotHere();

describe('many rounds of making and ending clones', reason === undefined ? {} : { skip: reason }, () => {
  let world: RowsWorld;
  before(async () => {
    world = await openCloudHypervisorWorld();
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
    const round = async () => {
      const vmId = newVmId();
      const runDir = paths.vmDir(vmId);
      await mkdir(runDir, { recursive: true });
      const request = { vmId, shape: record, image, runDir, from, memory: 'private' as const };
      const machine = await hypervisor.restore(request);
      pids.push(machine.pid);
      await machine.destroy();
      await rm(runDir, { recursive: true });
    };
    const worker = async () => {
      while (started++ < rounds) await round();
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
