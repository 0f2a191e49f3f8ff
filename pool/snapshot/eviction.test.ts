// Evictions on a file system of 40 MiB that fills up, from a real store in a directory beside it.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { link, mkdir, mkdtemp, readdir, rm, truncate, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { silentLog as log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import { pathsOf, snapshotFilesIn } from '../host/paths.ts';
import { StoreError } from '../store/blob-store.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { type Around, WrappedStore } from '../store/wrapped-store.ts';
import { testId, testImage, testKey, writeTestSnapshot } from './capture-for-tests.ts';
import { takeCloneFiles } from './clone-files.ts';
import { writeDeltaRuns } from './delta-runs.ts';
import { Eviction, type EvictionOptions, usedRatio } from './eviction.ts';
import { SnapshotLibrary } from './library.ts';
import { recordPath, type SnapshotRecord } from './record.ts';
import { manifestKey, segmentKey } from './store-keys.ts';
import { StoredSnapshots } from './stored-snapshots.ts';

const run = promisify(execFile);
const skip = process.getuid?.() === 0 ? false : 'mounting a small file system takes root';
const diskMb = 40;
/** Each has 5 MiB of its own: 4 of memory, 1 of disk. Seven fill the disk to more than 85 %, six to less than 80. */
const fill = 7;
const image = testImage(1);
const marks = { abovePercent: 85, toPercent: 80 };
const longAgoMs = Date.now() - 3_600_000;

describe('a disk that fills up', { skip }, () => {
  let dir: string;
  let dataDir: string;
  let store: DirectoryStore;
  let around: Around;
  let library: SnapshotLibrary;
  let stored: StoredSnapshots;
  const inUse = new Set<string>();
  const ids = Array.from({ length: fill }, (_, index) => testId(index));

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-evict-'));
    dataDir = join(dir, 'data');
    await mkdir(dataDir);
    await run('mount', ['-t', 'tmpfs', '-o', `size=${diskMb}m`, 'tmpfs', dataDir]);
    store = await DirectoryStore.open(join(dir, 'store'));
    around = (request, call) => call(request.options);
    inUse.clear();
    // Its reserve would not fit here.
    const paths = { ...pathsOf(dataDir), spoolDir: join(dir, 'spool') };
    await mkdir(paths.snapshotsDir, { recursive: true });
    library = new SnapshotLibrary({ paths, log });
    const blankDiskPath = join(dir, 'blank');
    await writeFile(blankDiskPath, '');
    await truncate(blankDiskPath, image.disk.length);
    const watched = new WrappedStore(store, (request, call) => around(request, call));
    const parts = { store: watched, clusterKey: testKey, library, paths, log, blankDiskPath };
    stored = await StoredSnapshots.open(parts);
    library.connect(stored, undefined);
  });
  afterEach(async () => {
    await stored.close();
    await run('umount', ['--lazy', dataDir]);
    await rm(dir, { recursive: true, force: true });
  });

  const eviction = (more: Partial<EvictionOptions> = {}) =>
    new Eviction({ marks, library, stored, inUse: () => inUse, caches: [], log, ...more });
  const here = async () => (await library.list()).map(({ snapshotId }) => snapshotId).sort();
  const usedPercent = async () => 100 * (await usedRatio(dataDir));
  const failing: Around = () => Promise.reject(new StoreError('unavailable', 'injected'));
  const evicted = async (kind = 'snapshot') => {
    const [count, bytes] = await Promise.all([metrics.evictions.get(), metrics.evictedBytes.get()]);
    const of = ({ values }: typeof count) => values.find(({ labels }) => labels.kind === kind)?.value ?? 0;
    return { count: of(count), bytes: of(bytes) };
  };

  /** The oldest is the first of `ids`. */
  async function save(id: string, more: Partial<SnapshotRecord> = {}): Promise<void> {
    const record = await writeTestSnapshot(library.paths, image, id, more);
    await lastUsed(id, longAgoMs + ids.indexOf(id) * 1_000);
    library.added(record);
  }
  const lastUsed = (id: string, atMs: number) =>
    utimes(recordPath(library.paths.snapshotDir(id)), new Date(atMs), new Date(atMs));

  async function saveAll(): Promise<void> {
    for (const id of ids) await save(id);
    await stored.settled();
    assert.ok((await usedPercent()) > marks.abovePercent, `${await usedPercent()}`);
  }

  it('row 13: is emptied of what is in the store, least recently used first, down to the lower mark', async () => {
    await saveAll();
    const [first, second, ...rest] = ids;
    await lastUsed(first!, Date.now() - 60_000);
    const before = await evicted();
    const sweeping = eviction();
    await sweeping.sweep();
    assert.deepEqual(await here(), [first, ...rest].sort(), 'the one that was used longest ago is gone');
    assert.ok((await usedPercent()) <= marks.toPercent, `${await usedPercent()}`);
    assert.equal(sweeping.note, undefined);
    const after = await evicted();
    assert.equal(after.count - before.count, 1);
    assert.ok(after.bytes - before.bytes > 5_000_000, `${after.bytes - before.bytes}`);
    assert.deepEqual(
      (await readdir(library.paths.snapshotsDir)).filter((name) => name.endsWith('.partial')),
      [],
    );
    // Below the upper mark nothing more goes.
    await sweeping.sweep();
    assert.equal((await here()).length, fill - 1);
    assert.equal((await library.record(second!)).snapshotId, second, 'it comes back from the store');
    assert.equal((await here()).length, fill);
  });

  it('row 13: keeps what is in use: by a VM, a restore or a build, the pool, and what was used just now', async () => {
    await saveAll();
    const [vm, held, pool, recent, ...rest] = ids;
    const ended = library.cloneStarted(vm!);
    const hold = library.use.hold(held!);
    inUse.add(pool!);
    await lastUsed(recent!, Date.now() - 1_000);
    const sweeping = eviction({ marks: { abovePercent: 1, toPercent: 0 } });
    await sweeping.sweep();
    assert.deepEqual(await here(), [vm, held, pool, recent].sort());
    assert.match(sweeping.note!, /in use, or only here/);
    for (const used of [vm!, held!])
      assert.equal(await library.evict(used), undefined, 'whoever asks for it');
    assert.equal(rest.length, 3);
    ended();
    hold[Symbol.dispose]();
    inUse.clear();
    await eviction({ marks: { abovePercent: 1, toPercent: 0 }, restMs: 0 }).sweep();
    assert.deepEqual(await here(), []);
  });

  it('row 13: keeps what only this node has: not yet published, another one’s there, or not whole there', async () => {
    await saveAll();
    const [unlisted, cut, tampered, other, ...rest] = ids;
    await store.delete(manifestKey(unlisted!));
    const segments = async (id: string) => (await stored.load(id)).segments.map(({ sha256 }) => sha256);
    // One image, one segment: all of them name it.
    const [shared] = await segments(cut!);
    for (const id of ids.slice(1)) assert.deepEqual(await segments(id), [shared]);
    const everything = { marks: { abovePercent: 1, toPercent: 0 } };
    const sound = await store.get(segmentKey(shared!));
    await store.delete(segmentKey(shared!));
    await store.put(segmentKey(shared!), sound.subarray(1));
    await eviction(everything).sweep();
    assert.equal((await here()).length, fill, 'the segment is cut off');
    await store.delete(segmentKey(shared!));
    await store.put(segmentKey(shared!), sound);
    const manifest = await store.get(manifestKey(tampered!));
    manifest[manifest.length - 1]! ^= 1;
    await store.replace(manifestKey(tampered!), manifest);
    for (const id of [other!, rest.pop()!]) await library.evict(id);
    await save(other!, { nonce: '9'.repeat(32) });
    around = (request, call) => (request.op === 'put' ? failing(request, call) : call(request.options));
    await save(testId(100));
    await eviction(everything).sweep();
    assert.deepEqual(await here(), [unlisted, tampered, other, testId(100)].sort());
    assert.ok(rest.length > 0);
  });

  it('row 13: keeps the base of a delta until that is gone, and the parent of one that is to be published', async () => {
    const [base, delta, parent, child] = ids;
    for (const id of [base!, parent!]) await save(id);
    await save(delta!, { form: 'delta', base: base!, parent: base! });
    const files = snapshotFilesIn(library.paths.snapshotDir(delta!));
    await link(snapshotFilesIn(library.paths.snapshotDir(base!)).pagesPath, files.basePagesPath);
    await writeFile(files.deltaPath, '');
    await writeDeltaRuns(files.deltaRunsPath, []);
    await stored.settled();
    around = (request, call) => (request.op === 'put' ? failing(request, call) : call(request.options));
    await save(child!, { parent: parent! });
    const gone: string[] = [];
    const evict = library.evict.bind(library);
    library.evict = (id) => {
      gone.push(id);
      return evict(id);
    };
    await eviction({ marks: { abovePercent: 1, toPercent: 0 } }).sweep();
    assert.deepEqual(gone, [delta, base], 'first the delta, though its base was used longer ago');
    assert.deepEqual(await here(), [parent, child].sort());
    around = (request, call) => call(request.options);
    await stored.settled();
    await eviction({ marks: { abovePercent: 1, toPercent: 0 } }).sweep();
    assert.deepEqual(await here(), []);
  });

  it('row 13: stays as it is without a store, or while that does not answer, and says so', async () => {
    await saveAll();
    const told = async () =>
      (await metrics.fallbacks.get()).values.find(({ labels }) => labels.kind === 'disk-too-full')?.value ??
      0;
    const before = await told();
    const alone = eviction({ stored: undefined });
    await alone.sweep();
    assert.match(alone.note!, /fuller than 85 %: nothing is evicted without a store/);
    around = failing;
    const failed = eviction();
    await failed.sweep();
    assert.match(failed.note!, /the store does not say what it has/);
    assert.equal((await told()) - before, 2);
    assert.equal((await here()).length, fill);
    assert.ok((await metrics.dataDiskUsed.get()).values[0]!.value > 0.85);
    around = (request, call) => call(request.options);
    await failed.sweep();
    assert.equal(failed.note, undefined);
    assert.equal((await here()).length, fill - 1);
  });

  it('row 13: gives caches up first, and no snapshot when that is enough', async () => {
    for (const id of ids.slice(1)) await save(id);
    await stored.settled();
    const path = join(dataDir, 'cache');
    await writeFile(path, Buffer.alloc(5 << 20));
    assert.ok((await usedPercent()) > marks.abovePercent);
    const before = await evicted('test');
    const empty = async () => {
      await rm(path);
      return 5 << 20;
    };
    const broken = { kind: 'broken', empty: () => Promise.reject(new Error('injected')) };
    await eviction({ caches: [broken, { kind: 'test', empty }] }).sweep();
    assert.equal((await here()).length, fill - 1);
    assert.equal((await evicted('test')).bytes - before.bytes, 5 << 20);
  });

  it('row 13: takes nothing from who starts a VM meanwhile', async () => {
    const [id] = ids;
    await save(id!);
    await stored.settled();
    const everything = eviction({ marks: { abovePercent: 1, toPercent: 0 }, restMs: 0 });
    let gone = 0;
    for (let round = 0; round < 40; round++) {
      const runDir = join(dataDir, `vm-${round}`);
      await mkdir(runDir);
      const [files] = await Promise.all([takeCloneFiles(library, id!, runDir), everything.sweep()]);
      assert.equal(files.record.form, 'whole');
      assert.deepEqual((await readdir(join(runDir, 'from'))).sort(), ['devices', 'disk', 'pages']);
      gone += (await here()).includes(id!) ? 0 : 1;
      await rm(runDir, { recursive: true });
    }
    assert.ok(gone > 0, 'some of them were evicted');
  });
});
