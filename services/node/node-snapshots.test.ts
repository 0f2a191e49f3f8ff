// What the node says of a snapshot that is only in the store, and of one that it checks: its own copy and the store's, sound,
// damaged, and when one is missing.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, open, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { pathsOf, snapshotFilesIn } from '../../pool/host/paths.ts';
import type { Pool } from '../../pool/pool.ts';
import {
  testCompatibility,
  testId,
  testImage,
  testKey,
  testPage,
} from '../../pool/snapshot/capture-for-tests.ts';
import { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import { recordFormat, type SnapshotRecord, writeRecord } from '../../pool/snapshot/record.ts';
import { manifestKey } from '../../pool/snapshot/store-keys.ts';
import { StoredSnapshots } from '../../pool/snapshot/stored-snapshots.ts';
import { DirectoryStore } from '../../pool/store/directory-store.ts';
import { silentLog as log } from '../../shared/log.ts';
import type { VerifiedCopy } from '../gateway/node-client.ts';
import type { RunningSandbox } from './node-sandboxes.ts';
import { NodeSnapshots } from './node-snapshots.ts';

const run = promisify(execFile);
const hasQemu = await run('qemu-img', ['--version']).then(
  () => true,
  () => false,
);
const skip = hasQemu ? false : 'qemu-img is not installed: apt-get install qemu-utils';
const snapshotId = testId(1);

describe('a node’s snapshots with a store', { skip }, () => {
  let dir: string;
  let library: SnapshotLibrary;
  let stored: StoredSnapshots;
  let snapshots: NodeSnapshots;
  const objectsDir = () => join(dir, 'store', 'objects');
  const files = () => snapshotFilesIn(pathsOf(dir).snapshotDir(snapshotId));

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-node-'));
    const paths = pathsOf(dir);
    library = new SnapshotLibrary({ paths, log });
    const blankDiskPath = join(dir, 'blank');
    await writeFile(blankDiskPath, testPage(1));
    await truncate(blankDiskPath, 8 << 20);
    const store = await DirectoryStore.open(join(dir, 'store'));
    const parts = { store, clusterKey: testKey, library, paths, log, blankDiskPath };
    stored = await StoredSnapshots.open(parts);
    library.connect(stored, undefined);
    // A check asks no pool.
    const pool = undefined as unknown as Pool;
    snapshots = new NodeSnapshots({ library, stored, log, pool, load: async () => {}, maxVms: 1 });
    library.added(await save(blankDiskPath));
    await stored.settled();
  });
  after(async () => {
    await stored?.close();
    await rm(dir, { recursive: true, force: true });
  });

  async function save(blankDiskPath: string): Promise<SnapshotRecord> {
    const snapshotDir = pathsOf(dir).snapshotDir(snapshotId);
    await mkdir(snapshotDir, { recursive: true });
    await writeFile(files().pagesPath, testImage(1).memory);
    await writeFile(files().devicesPath, testPage(2));
    const layer = ['create', '-q', '-f', 'qcow2', '-b', blankDiskPath, '-F', 'raw', files().diskPath];
    await run('qemu-img', layer);
    const record: SnapshotRecord = {
      ...{ format: recordFormat, snapshotId, kind: 'sandbox', names: ['saved'], depth: 0, form: 'whole' },
      ...{ dir: snapshotDir, nonce: '0'.repeat(32), memoryMb: 4, vcpus: 1, compatibility: testCompatibility },
      ...{ createdAt: new Date(0).toISOString(), sizeBytes: 4096 },
    };
    await writeRecord(snapshotDir, record);
    return record;
  }

  /** Turns one byte in the middle of an object over. */
  async function spoil(path: string): Promise<void> {
    await using file = await open(path, 'r+');
    const at = Math.floor((await file.stat()).size / 2);
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, at);
    await file.write(Buffer.from([byte[0]! ^ 255]), 0, 1, at);
  }

  const verdicts = (copies: VerifiedCopy[]) =>
    copies.map(({ copy, checked, damaged }) => [copy, checked > 0, damaged.map(({ what }) => what)]);

  it('finds what is only in the store by its name, shows it where it is, and has it brought', async () => {
    await library.evict(snapshotId);
    for (const word of ['saved', 'saved:default', snapshotId]) {
      const { here, stored: state, children, clones } = await snapshots.inspect(word);
      assert.deepEqual([here, state, children, clones], [false, 'yes', [], 0]);
    }
    const capture = () => assert.fail('its name is taken');
    const sandbox = { sandboxId: 'sbx', lease: { vm: { capture } } } as unknown as RunningSandbox;
    await assert.rejects(snapshots.capture(sandbox, { names: ['saved'], keepRunning: true }), {
      code: 'conflict',
    });
    assert.equal((await snapshots.find('saved')).snapshotId, snapshotId);
    assert.equal((await snapshots.inspect('saved')).here, true);
    for (const word of ['nothing', testId(9)]) {
      await assert.rejects(snapshots.inspect(word), { code: 'template-not-found' });
      await assert.rejects(snapshots.find(word), { code: 'template-not-found' });
      await assert.rejects(snapshots.remove(word), { code: 'template-not-found' });
    }
  });

  it('tells each copy’s state', async () => {
    assert.equal((await snapshots.inspect('saved')).workingSet, null);
    await stored.learnt({ snapshotId, memoryMb: 4 }, [
      [{ page: 3, pageCount: 2 }],
      [{ page: 4, pageCount: 4 }],
    ]);
    assert.deepEqual((await snapshots.inspect('saved')).workingSet, { pages: 5, clones: 2 });
    const sound = await snapshots.verify('saved');
    assert.equal(sound.snapshotId, snapshotId);
    assert.deepEqual(verdicts(sound.copies), [
      ['local', true, []],
      ['store', true, []],
    ]);
    assert.ok(sound.copies.every(({ bytes }) => bytes > 100_000));
    await truncate(files().devicesPath, 0);
    const segments = join(objectsDir(), 'segments');
    for (const name of await readdir(segments, { recursive: true, withFileTypes: true }))
      if (name.isFile()) await spoil(join(name.parentPath, name.name));
    const [local, store] = (await snapshots.verify(snapshotId)).copies;
    assert.deepEqual([local?.damaged[0]?.what, local?.damaged.length], ['devices', 1]);
    assert.match(store!.damaged[0]!.what, /^frame \d+$/);
  });

  it('tells a manifest that was changed, and what is nowhere', async () => {
    await spoil(join(objectsDir(), manifestKey(snapshotId)));
    const [, store] = (await snapshots.verify(snapshotId)).copies;
    assert.deepEqual([store?.checked, store?.damaged[0]?.what], [0, 'manifest']);
    await assert.rejects(snapshots.verify(testId(2)), { code: 'template-not-found' });
  });
});
