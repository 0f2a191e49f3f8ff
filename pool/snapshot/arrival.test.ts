import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { silentLog } from '../../shared/log.ts';
import { type Paths, pathsOf, snapshotFilesIn } from '../host/paths.ts';
import { reclaim } from '../host/reclaim.ts';
import { type BlobStore, StoreError } from '../store/blob-store.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { type Around, WrappedStore } from '../store/wrapped-store.ts';
import { type ArrivalOptions, bringSnapshot } from './arrival.ts';
import {
  flatDiskCompatibility,
  testCompatibility,
  testId,
  testImage,
  testKey,
  wholeCapture,
} from './capture-for-tests.ts';
import { Catalogue } from './catalogue.ts';
import type { Manifest } from './manifest.ts';
import { Publisher } from './publish.ts';
import { readRecord } from './record.ts';
import { manifestKey } from './store-keys.ts';

const run = promisify(execFile);
const mayMount = process.getuid?.() === 0 ? {} : { skip: 'mounting a small file system takes root' };
const snapshotId = testId(1);
const image = testImage(1);

describe('a snapshot that comes from the store', () => {
  let dir: string;
  let store: BlobStore;
  let blankDiskPath: string;
  let paths: Paths;
  let manifest: Manifest;
  let node = 0;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-arrival-'));
    store = await DirectoryStore.open(join(dir, 'store'));
    blankDiskPath = join(dir, 'blank');
    await writeFile(blankDiskPath, '');
    await truncate(blankDiskPath, image.disk.length);
    const publisher = await Publisher.open({
      ...{ store, clusterKey: testKey, spoolDir: join(dir, 'spool'), threads: 1, reserveBytes: 0 },
    });
    const capture = await wholeCapture(join(dir, 'capture'), 1, image);
    manifest = (await publisher.publish({ ...capture, compatibility: flatDiskCompatibility })).manifest;
    await publisher.close();
  });
  after(() => rm(dir, { recursive: true, force: true }));
  beforeEach(() => {
    paths = pathsOf(join(dir, `node-${++node}`));
  });

  const bring = (more: Partial<ArrivalOptions> = {}, what = manifest) =>
    bringSnapshot(what, { store, clusterKey: testKey, paths, blankDiskPath, paged: true, ...more });
  const left = () => readdir(paths.snapshotsDir).catch(() => []);
  /** Reads of segments give what `spoil` makes of them; it is told their number, from 1. */
  const spoiled = (spoil: (bytes: Buffer, read: number) => Buffer) => {
    const counts = { reads: 0 };
    const around: Around = async (request, call) => {
      const answer = await call(request.options);
      if (!(Buffer.isBuffer(answer) && request.what.includes('segments/'))) return answer;
      return spoil(Buffer.from(answer), ++counts.reads) as typeof answer;
    };
    return { store: new WrappedStore(store, around), counts };
  };
  const flip = (bytes: Buffer) => {
    for (let at = 64; at < bytes.length; at += 512) bytes[at]! ^= 1;
    return bytes;
  };

  it('is here with all but its memory, under the same manifest', async () => {
    const told: string[] = [];
    const record = await bring({ onManifest: (path) => told.push(path) });
    assert.equal(record.form, 'paged');
    const files = snapshotFilesIn(paths.snapshotDir(snapshotId));
    assert.deepEqual(await readRecord(record.dir), record);
    assert.ok((await readFile(files.devicesPath)).equals(image.devices));
    assert.ok((await readFile(files.diskPath)).equals(image.disk));
    assert.deepEqual(await readFile(files.manifestPath), await store.get(manifestKey(snapshotId)));
    assert.equal(told.length, 1);
    assert.deepEqual((await readdir(record.dir)).includes('pages'), false);
  });

  it('brings its memory, too, where nothing can serve it', async () => {
    const record = await bring({ paged: false });
    assert.equal(record.form, 'whole');
    assert.ok((await readFile(snapshotFilesIn(record.dir).pagesPath)).equals(image.memory));
  });

  it('row 8: is refused when its manifest was tampered with, and told of', async () => {
    const path = join(dir, 'store', 'objects', manifestKey(snapshotId));
    const sound = await readFile(path);
    const refused: string[] = [];
    const catalogue = new Catalogue({ store, clusterKey: testKey, onRefused: (id) => refused.push(id) });
    for (const at of [8, Math.floor(sound.length / 2), sound.length - 1]) {
      const bytes = Buffer.from(sound);
      bytes[at]! ^= 1;
      await writeFile(path, bytes);
      await assert.rejects(catalogue.find(snapshotId), { code: 'snapshot-damaged' });
    }
    await writeFile(path, sound);
    assert.deepEqual(refused, [snapshotId, snapshotId, snapshotId]);
  });

  it('row 7: a frame that was spoiled on the way is fetched once more', async () => {
    const once = spoiled((bytes, read) => (read === 1 ? flip(bytes) : bytes));
    const record = await bring({ store: once.store });
    assert.ok((await readFile(snapshotFilesIn(record.dir).devicesPath)).equals(image.devices));
    assert.ok((await readFile(snapshotFilesIn(record.dir).diskPath)).equals(image.disk));
  });

  it('row 7: is refused when a frame is wrong twice: flipped, cut off or another one’s; nothing is left', async () => {
    const wrongs = {
      flipped: flip,
      'cut off': (bytes: Buffer) => bytes.subarray(0, bytes.length / 2),
      'another one’s': (bytes: Buffer) => Buffer.from(bytes).reverse(),
    };
    for (const [how, spoil] of Object.entries(wrongs)) {
      const always = spoiled(spoil);
      await assert.rejects(bring({ store: always.store }), { code: 'snapshot-damaged' }, how);
      assert.ok(
        always.counts.reads <= 2 * manifest.frames.segment.length,
        'each was asked for twice at most',
      );
      assert.deepEqual(await left(), [], how);
    }
  });

  it('row 5: is a typed error when the store fails meanwhile; nothing is left, and the next try has it', async () => {
    const failing = spoiled(() => {
      throw new StoreError('unavailable', 'injected');
    });
    await assert.rejects(bring({ store: failing.store }), { code: 'store-unavailable' });
    assert.deepEqual(await left(), []);
    assert.equal((await bring()).snapshotId, snapshotId);
  });

  it('row 13: is a typed error when the disk is full, and leaves no directory', mayMount, async () => {
    await mkdir(paths.snapshotsDir, { recursive: true });
    await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', paths.snapshotsDir]);
    try {
      await assert.rejects(bring(), { code: 'no-space', message: new RegExp(snapshotId) });
      assert.deepEqual(await left(), []);
    } finally {
      await run('umount', ['--lazy', paths.snapshotsDir]);
    }
  });

  it('row 28: is refused when this node’s disks are of another size; nothing is left', async () => {
    const otherBlank = join(dir, 'other-blank');
    await writeFile(otherBlank, '');
    await truncate(otherBlank, image.disk.length * 2);
    const layered = { ...manifest, compatibility: testCompatibility };
    await assert.rejects(bring({ blankDiskPath: otherBlank }, layered), { code: 'incompatible' });
    assert.deepEqual(await left(), []);
  });

  it('row 22: that a crash interrupted leaves only what the next start clears away', async () => {
    const program = `
      import { bringSnapshot } from ${JSON.stringify(join(import.meta.dirname, 'arrival.ts'))};
      import { DirectoryStore } from ${JSON.stringify(join(import.meta.dirname, '../store/directory-store.ts'))};
      import { Catalogue } from ${JSON.stringify(join(import.meta.dirname, 'catalogue.ts'))};
      import { testKey as clusterKey } from ${JSON.stringify(join(import.meta.dirname, 'capture-for-tests.ts'))};
      import { pathsOf } from ${JSON.stringify(join(import.meta.dirname, '../host/paths.ts'))};
      const store = await DirectoryStore.open(${JSON.stringify(join(dir, 'store'))});
      const manifest = await new Catalogue({ store, clusterKey }).load(${JSON.stringify(snapshotId)});
      const get = store.get.bind(store);
      let reads = 0;
      store.get = async (...args) => {
        if (++reads === 2) process.kill(process.pid, 'SIGKILL');
        return await get(...args);
      };
      const paths = pathsOf(${JSON.stringify(join(dir, `node-${node}`))});
      const blankDiskPath = ${JSON.stringify(blankDiskPath)};
      await bringSnapshot(manifest, { store, clusterKey, paths, blankDiskPath, paged: true });`;
    const script = join(dir, 'die.mts');
    await writeFile(script, program);
    await assert.rejects(run(process.execPath, [script]), { signal: 'SIGKILL' });
    const names = await left();
    assert.ok(names.length === 1 && names[0]!.endsWith('.partial'), `${names}`);
    await reclaim({ paths, log: silentLog });
    assert.deepEqual(await left(), []);
    assert.equal((await bring()).snapshotId, snapshotId);
  });
});
