// Tests captures and the library with machines without processes: what is there after each outcome, and who runs on.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { ThawError } from '../../shared/errors.ts';
import { newSnapshotId } from '../../shared/ids.ts';
import { silentLog } from '../../shared/log.ts';
import { type Paths, pathsOf, snapshotFilesIn } from '../host/paths.ts';
import { reclaim } from '../host/reclaim.ts';
import { type CaptureRequest, captureVm } from './capture.ts';
import { takeCloneFiles } from './clone-files.ts';
import { SnapshotLibrary } from './library.ts';
import { recordFormat, type SnapshotRecord, writeRecord } from './record.ts';
import { SimulatedMachine } from './simulated-machine.ts';

const memoryMb = 1;
const memoryBytes = memoryMb * 1024 * 1024;
const compatibility = {
  hypervisor: 'h',
  hypervisorVersion: '1',
  machine: 'm',
  cpu: 'c',
  imageDigest: 'd',
};

describe('captures of running VMs', () => {
  let dataDir: string;
  let paths: Paths;
  let library: SnapshotLibrary;
  let template: SnapshotRecord;
  beforeEach(async () => {
    dataDir = await mkdtemp(join(tmpdir(), 'thaw-cap-'));
    paths = pathsOf(dataDir);
    library = new SnapshotLibrary({ paths, log: silentLog });
    template = await makeTemplate();
  });
  afterEach(() => rm(dataDir, { recursive: true, force: true }));

  const makeTemplate = async (over: Partial<SnapshotRecord> = {}) => {
    const snapshotId = newSnapshotId();
    const dir = paths.snapshotDir(snapshotId);
    const files = snapshotFilesIn(dir);
    await mkdir(dir, { recursive: true });
    await writeFile(files.pagesPath, Buffer.alloc(memoryBytes, 0xaa));
    await writeFile(files.devicesPath, 'devices');
    await writeFile(files.diskPath, 'disk');
    const record: SnapshotRecord = {
      ...{ format: recordFormat, snapshotId, kind: 'template', names: [], depth: 0, form: 'whole', dir },
      ...{ nonce: '0'.repeat(32), memoryMb, vcpus: 1, compatibility, sizeBytes: 0 },
      createdAt: '2026-01-01T00:00:00.000Z',
      ...over,
    };
    await writeRecord(dir, record);
    return record;
  };
  const start = async (snapshotId = template.snapshotId) => {
    const machine = new SimulatedMachine();
    const runDir = paths.vmDir(machine.vmId);
    await mkdir(runDir, { recursive: true });
    const files = await takeCloneFiles(library, snapshotId, runDir);
    const lost: string[] = [];
    const source = {
      ...{ machine, files, lost, control: await machine.control() },
      onLost: (reason: string) => void lost.push(reason),
    };
    const capture = (request: Partial<CaptureRequest> = {}) =>
      captureVm(library, source, { resume: true, ...request });
    return { ...source, capture };
  };
  const snapshotDirs = async () => (await readdir(paths.snapshotsDir)).sort();
  /** Memory as a clone of the snapshot sees it. */
  const memoryOf = async (snapshotId: string) => {
    const vm = await start(snapshotId);
    const memory = await readFile(vm.files.from.pagesPath);
    let position = 0;
    const delta = vm.files.delta && (await readFile(vm.files.delta.path));
    for (const { offsetBytes, sizeBytes } of vm.files.delta?.runs ?? []) {
      delta!.copy(memory, offsetBytes, position, position + sizeBytes);
      position += sizeBytes;
    }
    return memory;
  };

  it('become snapshots that VMs start from at once, with their facts', async () => {
    const vm = await start();
    vm.machine.pages = Buffer.alloc(3 * 4096, 0xbb);
    const stages: string[] = [];
    const record = await vm.capture({ names: ['team/app:v1'], onStage: (stage) => stages.push(stage) });
    const order = ['hold', 'pause', 'state', 'scan', 'copy', 'disk', 'resume', 'write', 'layers', 'record'];
    assert.deepEqual(
      stages.filter((stage) => stage !== 'proceed'),
      order,
    );
    assert.deepEqual(vm.machine.guest.heard, ['hold', 'proceed']);
    assert.deepEqual([vm.machine.paused, vm.machine.guest.state], [false, 'ready']);
    assert.equal(record.parent, template.snapshotId);
    assert.deepEqual([record.depth, record.form, record.base], [1, 'delta', template.snapshotId]);
    assert.deepEqual([record.kind, record.dirtyPages, record.names], ['sandbox', 3, ['team/app:v1']]);
    assert.equal(record.pauseMs?.total, 6);
    assert.deepEqual(await new SnapshotLibrary({ paths, log: silentLog }).record(record.snapshotId), record);
    const memory = await memoryOf(record.snapshotId);
    assert.ok(memory.subarray(0, 3 * 4096).every((byte) => byte === 0xbb));
    assert.ok(memory.subarray(3 * 4096).every((byte) => byte === 0xaa));
    assert.equal((await library.find('team/app:v1'))?.snapshotId, record.snapshotId);
  });

  it('are relative to one base at any depth, and materialise to the same memory', async () => {
    let snapshotId = template.snapshotId;
    for (let depth = 1; depth <= 10; depth++) {
      const vm = await start(snapshotId);
      vm.machine.pages = Buffer.alloc(depth * 4096, depth);
      const record = await vm.capture();
      assert.deepEqual([record.depth, record.base], [depth, template.snapshotId]);
      snapshotId = record.snapshotId;
    }
    const before = await memoryOf(snapshotId);
    await library.materialise(snapshotId);
    const record = await library.record(snapshotId);
    assert.deepEqual([record.form, record.base], ['whole', undefined]);
    assert.deepEqual(await memoryOf(snapshotId), before);
    assert.deepEqual((await readdir(record.dir)).sort(), ['devices', 'disk', 'pages', 'snapshot.json']);
    const child = await (await start(snapshotId)).capture();
    assert.equal(child.base, snapshotId);
  });

  it('give a clone their page file itself: nothing is copied, nothing read', async () => {
    const { pagesPath } = snapshotFilesIn(template.dir);
    const before = await stat(pagesPath, { bigint: true });
    const { files } = await start();
    const { ino, atimeNs, blocks } = await stat(files.from.pagesPath, { bigint: true });
    assert.deepEqual([ino, atimeNs, blocks], [before.ino, before.atimeNs, before.blocks]);
  });

  it('outlive everything they came from', async () => {
    const vm = await start();
    vm.machine.pages = Buffer.alloc(4096, 1);
    const parent = await vm.capture();
    const between = await start(parent.snapshotId);
    for (const { snapshotId } of [template, parent]) await library.remove(snapshotId);
    between.machine.pages = Buffer.alloc(8192, 2);
    const child = await between.capture();
    assert.deepEqual(await snapshotDirs(), [child.snapshotId]);
    const memory = await memoryOf(child.snapshotId);
    assert.deepEqual([memory[0], memory[8191], memory[8192]], [2, 2, 0xaa]);
    await library.materialise(child.snapshotId);
    assert.deepEqual(await memoryOf(child.snapshotId), memory);
    await assert.rejects(library.remove(parent.snapshotId), { code: 'template-not-found' });
    await assert.rejects(library.inspect(parent.snapshotId), { code: 'template-not-found' });
  });

  it('row 25: refuse what is being captured and names that are taken', async () => {
    const [first, second] = [await start(), await start()];
    const outcomes = await Promise.allSettled([
      first.capture({ names: ['a'] }),
      first.capture(),
      second.capture({ names: ['b', 'a'] }),
      second.capture({ names: ['c'] }),
    ]);
    const codes = outcomes.map((outcome) =>
      outcome.status === 'fulfilled' ? 'made' : (outcome.reason as ThawError).code,
    );
    assert.deepEqual(codes, ['made', 'conflict', 'conflict', 'made']);
    await assert.rejects(first.capture({ names: ['a'] }), { code: 'conflict' });
    await assert.rejects(first.capture({ names: ['../a'] }), { code: 'bad-request' });
    await library.remove((await library.find('a'))!.snapshotId);
    await first.capture({ names: ['a'] });
  });

  it('leave nothing and let the VM run on, whichever step fails', async () => {
    const there = await snapshotDirs();
    for (const failing of ['pause', 'state', 'scan', 'copy', 'disk', 'resume', 'write']) {
      const vm = await start();
      vm.machine.atStage = (stage) => {
        if (stage === failing) throw new ThawError('hypervisor-failed', `${stage} failed`);
      };
      await assert.rejects(vm.capture(), { code: 'hypervisor-failed', message: `${failing} failed` });
      assert.deepEqual(await snapshotDirs(), there, failing);
      assert.deepEqual([vm.machine.paused, vm.machine.guest.state], [false, 'ready'], failing);
      vm.machine.atStage = () => {};
      await library.remove((await vm.capture()).snapshotId);
    }
  });

  it('leave a VM paused when asked to, but not when what follows fails', async () => {
    const vm = await start();
    const record = await vm.capture({ resume: false });
    assert.deepEqual([vm.machine.paused, vm.machine.guest.heard], [true, ['hold']]);
    assert.equal(record.pauseMs?.resume, undefined);
    const other = await start();
    // The base cannot be linked any more: the last step fails.
    other.machine.atStage = (stage) => (stage === 'write' ? rm(other.files.from.pagesPath) : undefined);
    await assert.rejects(other.capture({ resume: false }), { code: 'hypervisor-failed' });
    assert.deepEqual([other.machine.paused, other.machine.guest.state], [false, 'ready']);
  });

  it('row 13: do not begin on a disk below its reserve', async () => {
    const vm = await start();
    await assert.rejects(vm.capture({ reserveBytes: Number.MAX_SAFE_INTEGER }), { code: 'no-space' });
    assert.deepEqual(vm.machine.guest.heard, []);
    assert.deepEqual(await snapshotDirs(), [template.snapshotId]);
  });

  it('row 13: report a full disk as such, and the source goes on', async () => {
    const vm = await start();
    vm.machine.atStage = (stage) => {
      if (stage === 'write') throw new ThawError('no-space', 'full');
    };
    await assert.rejects(vm.capture(), { code: 'no-space' });
    assert.equal(vm.machine.guest.state, 'ready');
  });

  it('row 22: do not pause a guest that does not answer, and give up one that does not go on', async (context) => {
    context.mock.timers.enable({ apis: ['setTimeout'] });
    const elapse = async (milliseconds: number) => {
      for (let step = 0; step < 10; step++) {
        await new Promise(setImmediate);
        context.mock.timers.tick(milliseconds / 10);
      }
    };
    const silent = await start();
    silent.machine.guest.deaf.add('hold');
    const refused = assert.rejects(silent.capture(), { code: 'deadline-exceeded' });
    await eventually(() => silent.machine.guest.heard.length === 1);
    await elapse(6_000);
    await refused;
    assert.deepEqual(silent.lost, []);
    const stuck = await start();
    for (const op of ['proceed', 'health']) stuck.machine.guest.deaf.add(op);
    const captured = stuck.capture();
    await eventually(() => stuck.machine.guest.heard.includes('proceed'));
    await elapse(16_000);
    await eventually(() => stuck.machine.guest.heard.includes('health'));
    await elapse(6_000);
    // The snapshot is whole all the same.
    assert.equal((await library.record((await captured).snapshotId)).depth, 1);
    assert.equal(stuck.lost.length, 1);
  });

  it('that a crash interrupted are reclaimed; finished ones stay', async () => {
    const vm = await start();
    const record = await vm.capture();
    const torn = `${paths.snapshotDir(newSnapshotId())}.partial`;
    await mkdir(torn);
    await writeFile(join(torn, 'delta'), 'x');
    const removed = `${paths.snapshotDir(newSnapshotId())}.gone.partial`;
    await mkdir(removed);
    const reclaimed = await reclaim({ paths, log: silentLog });
    assert.equal(reclaimed.filter(({ kind }) => kind === 'partial-snapshot').length, 2);
    assert.deepEqual(await snapshotDirs(), [template.snapshotId, record.snapshotId].sort());
  });

  it('materialise at their second restore, while VMs start', async () => {
    const vm = await start();
    vm.machine.pages = Buffer.alloc(4096, 7);
    const { snapshotId } = await vm.capture();
    library.cloneStarted(snapshotId);
    await library.settled();
    assert.equal((await library.record(snapshotId)).form, 'delta');
    library.cloneStarted(snapshotId);
    const memories = await Promise.all(Array.from({ length: 20 }, () => memoryOf(snapshotId)));
    await library.settled();
    for (const memory of memories) assert.deepEqual([memory[0], memory[4096]], [7, 0xaa]);
    assert.equal((await library.record(snapshotId)).form, 'whole');
    assert.equal((await memoryOf(snapshotId))[0], 7);
  });

  it('row 22: are found whole by a start after a crash in the middle of a materialisation', async () => {
    const vm = await start();
    vm.machine.pages = Buffer.alloc(4096, 7);
    const record = await vm.capture();
    const files = snapshotFilesIn(record.dir);
    await writeFile(`${files.pagesPath}.partial`, 'half');
    await writeFile(files.pagesPath, 'finished, but the record does not say so');
    const later = new SnapshotLibrary({ paths, log: silentLog });
    assert.equal((await memoryOf(record.snapshotId))[0], 7);
    await later.materialise(record.snapshotId);
    library.forget(record.snapshotId);
    assert.equal((await memoryOf(record.snapshotId))[0], 7);
  });

  it('are inspected with their clones and children', async () => {
    const vm = await start();
    const child = await vm.capture();
    const ended = library.cloneStarted(template.snapshotId);
    const facts = await library.inspect(template.snapshotId);
    assert.deepEqual([facts.clones, facts.children], [1, [child.snapshotId]]);
    ended();
    ended();
    assert.equal((await library.inspect(template.snapshotId)).clones, 0);
    assert.ok(child.sizeBytes > 0 && child.sizeBytes < (await stat(child.dir)).blksize * 100);
  });

  it('are listed by the thousand in under 100 ms, newest first', async (context) => {
    for (let count = 0; count < 1000; count++) {
      const snapshotId = newSnapshotId();
      const dir = paths.snapshotDir(snapshotId);
      await mkdir(dir);
      const createdAt = new Date(count * 1000).toISOString();
      // Not durably: syncing a thousand of them takes half a minute.
      await writeFile(
        join(dir, 'snapshot.json'),
        JSON.stringify({ ...template, snapshotId, dir, createdAt }),
      );
    }
    const fresh = new SnapshotLibrary({ paths, log: silentLog });
    const timed = async () => {
      const startMs = performance.now();
      const records = await fresh.list();
      return { records, elapsedMs: performance.now() - startMs };
    };
    const first = await timed();
    const { records, elapsedMs } = await timed();
    context.diagnostic(`first ${first.elapsedMs.toFixed(0)} ms, then ${elapsedMs.toFixed(0)} ms`);
    assert.equal(records.length, 1001);
    assert.equal(records[0]!.snapshotId, template.snapshotId);
    assert.ok(records[1]!.createdAt > records[2]!.createdAt);
    assert.ok(elapsedMs < 100, `${elapsedMs} ms`);
  });
});

async function eventually(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise(setImmediate);
}
