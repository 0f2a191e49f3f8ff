import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { ThawError } from '../../shared/errors.ts';
import { silentLog as log } from '../../shared/log.ts';
import { pathsOf } from '../host/paths.ts';
import { type BlobStore, StoreError } from '../store/blob-store.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { type Around, WrappedStore } from '../store/wrapped-store.ts';
import { testId, testImage, testKey, writeTestSnapshot } from './capture-for-tests.ts';
import { SnapshotLibrary } from './library.ts';
import type { PagedImage, PagedSnapshots } from './paged-lease.ts';
import type { SnapshotRecord } from './record.ts';
import { manifestKey, workingSetKey } from './store-keys.ts';
import { StoredSnapshots, type StoredSnapshotsOptions } from './stored-snapshots.ts';

const snapshotId = testId(1);
const image = testImage(1);
const memory = { snapshotId, memoryMb: 4 };

/** Takes notice of what is expected; nobody restores anything here. */
class ExpectingPager implements PagedSnapshots {
  readonly expected: PagedImage[] = [];
  expect(paged: PagedImage): void {
    this.expected.push(paged);
  }
  lease(): never {
    throw new ThawError('mount-failed', 'not asked for here');
  }
  keep(): never {
    throw new ThawError('mount-failed', 'not asked for here');
  }
}

interface Node {
  library: SnapshotLibrary;
  stored: StoredSnapshots;
  pager: ExpectingPager;
}

describe('a node’s snapshots in the store', () => {
  let dir: string;
  let store: DirectoryStore;
  let nodes: Node[];
  /** Every request of a node goes through it. */
  let around: Around;
  let requests: string[];

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-stored-'));
    store = await DirectoryStore.open(join(dir, 'store'));
    nodes = [];
    requests = [];
    around = (request, call) => call(request.options);
  });
  afterEach(async () => {
    for (const { stored } of nodes) await stored.close();
    await rm(dir, { recursive: true, force: true });
  });

  const watched = (): BlobStore =>
    new WrappedStore(store, (request, call) => {
      requests.push(`${request.op} ${request.what}`);
      return around(request, call);
    });
  const failing: Around = () => Promise.reject(new StoreError('unavailable', 'injected'));

  async function node(more: Partial<StoredSnapshotsOptions> = {}): Promise<Node> {
    const paths = pathsOf(join(dir, `node-${nodes.length}`));
    await mkdir(paths.snapshotsDir, { recursive: true });
    const library = new SnapshotLibrary({ paths, log });
    const pager = new ExpectingPager();
    const blankDiskPath = join(dir, 'blank');
    await writeFile(blankDiskPath, '');
    await truncate(blankDiskPath, image.disk.length);
    const parts = { store: watched(), clusterKey: testKey, library, paths, log, blankDiskPath, paged: pager };
    const stored = await StoredSnapshots.open({ ...parts, ...more });
    library.connect(stored, pager);
    const made = { library, stored, pager };
    nodes.push(made);
    return made;
  }

  async function save({ library }: Node, id = snapshotId, more: Partial<SnapshotRecord> = {}): Promise<void> {
    library.added(await writeTestSnapshot(library.paths, image, id, more));
  }

  /** One that a node made and another one has not. */
  async function published(more: Partial<StoredSnapshotsOptions> = {}): Promise<Node> {
    const maker = await node();
    await save(maker);
    await maker.stored.settled();
    assert.equal(maker.stored.stateOf(snapshotId), 'stored');
    requests = [];
    return await node(more);
  }

  const pins = async () => (await store.listKeys('pins/')).entries;
  async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
    const endMs = performance.now() + 5_000;
    while (!(await holds())) {
      assert.ok(performance.now() < endMs, what);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  it('row 14: come once, however many ask for one at the same time', async () => {
    const { library, pager } = await published();
    const records = await Promise.all(Array.from({ length: 256 }, () => library.record(snapshotId)));
    assert.equal(new Set(records.map(({ dir: at }) => at)).size, 1);
    assert.equal(requests.filter((request) => request.includes('manifests/')).length, 1);
    assert.equal(pager.expected.length, 1);
    const reads = requests.filter((request) => request.startsWith('get') && request.includes('segments/'));
    assert.equal(new Set(reads).size, 1);
    assert.ok(reads.length <= 4, `${reads.length} reads of segments: of devices and disk, once`);
    assert.deepEqual(await readdir(library.paths.snapshotsDir), [snapshotId]);
  });

  it('that are nowhere are not there, and one that came while somebody looked does not come again', async () => {
    const { stored } = await published();
    assert.equal(await stored.bring(testId(99)), undefined);
    const first = await stored.bring(snapshotId);
    assert.deepEqual(await stored.bring(snapshotId), first);
  });

  it('row 5: a failing store is a typed error for what is not here, and nothing for what is', async () => {
    const { library, stored } = await published();
    around = failing;
    await assert.rejects(library.record(snapshotId), { code: 'store-unavailable' });
    await assert.rejects(stored.find('a-name'), { code: 'store-unavailable' });
    await save(nodes[1]!, testId(2));
    assert.equal((await library.record(testId(2))).form, 'whole');
    await until('it waits for the store', async () => stored.backlog.failing);
    around = (request, call) => call(request.options);
    await stored.settled();
    assert.equal(stored.stateOf(testId(2)), 'stored');
  });

  it('row 6: that take long are a typed error for who waits, come all the same, and are there for who asks again', async () => {
    await published();
    const held = Promise.withResolvers<void>();
    const { library, stored } = nodes[1]!;
    const patient = new SnapshotLibrary({ paths: library.paths, log, arrivalWaitMs: 50 });
    patient.connect(stored, undefined);
    around = async (request, call) => {
      if (request.what.includes('segments/')) await held.promise;
      return await call(request.options);
    };
    for (let attempt = 0; attempt < 2; attempt++)
      await assert.rejects(patient.record(snapshotId), { code: 'deadline-exceeded', retryable: true });
    held.resolve();
    await until('it has come', async () => (await patient.here(snapshotId)) !== undefined);
    assert.equal((await patient.record(snapshotId)).snapshotId, snapshotId);
    assert.equal(requests.filter((request) => request.includes('manifests/')).length, 1, 'it came once');
  });

  it('pin what they need while their memory is not here, renew that, and let go of it', async () => {
    const { library, stored } = await published({ pinMs: 300 });
    stored.start();
    await library.record(snapshotId);
    await until('it is pinned', async () => (await pins()).length === 1);
    const written = () => requests.filter((request) => /^replace.*pins\//.test(request)).length;
    await until('it is renewed', async () => written() >= 3);
    await stored.unpin(snapshotId);
    // A renewal that was under way lets go of it in the end.
    await until('it is let go of', async () => (await pins()).length === 0);
  });

  it('are pinned again after the store did not answer for longer than a pin holds', async () => {
    const { library, stored } = await published({ pinMs: 60 });
    stored.start();
    around = (request, call) =>
      request.what.includes('pins/') ? failing(request, call) : call(request.options);
    await library.record(snapshotId);
    around = (request, call) => call(request.options);
    await until('it is pinned after all', async () => (await pins()).length === 1);
    around = (request, call) =>
      request.what.includes('pins/') ? failing(request, call) : call(request.options);
    await new Promise((resolve) => setTimeout(resolve, 120));
    requests = [];
    around = (request, call) => call(request.options);
    await until('it is pinned anew', async () =>
      requests.some((request) => /^replace.*pins\//.test(request)),
    );
    await stored.unpin(snapshotId);
    await until('nothing stays', async () => (await pins()).length === 0);
  });

  it('that cannot come are not pinned', async () => {
    const { library, stored } = await published();
    around = (request, call) =>
      request.what.includes('segments/') ? failing(request, call) : call(request.options);
    await assert.rejects(library.record(snapshotId), { code: 'store-unavailable' });
    await until('no pin is left', async () => (await pins()).length === 0);
    await stored.unpin(snapshotId);
  });

  it('are released and pinned no more when they are removed, here and in the store', async () => {
    const { library } = await published();
    await library.record(snapshotId);
    await library.remove(snapshotId);
    await until('no pin is left', async () => (await pins()).length === 0);
    assert.equal(await store.head(manifestKey(snapshotId)), undefined);
    await assert.rejects(library.record(snapshotId), { code: 'template-not-found' });
  });

  it('removed while they come do not stay', async () => {
    const { library } = await published();
    const [coming] = await Promise.allSettled([library.record(snapshotId), library.remove(snapshotId)]);
    assert.equal(coming.status, 'fulfilled');
    assert.deepEqual(await readdir(library.paths.snapshotsDir), []);
    await assert.rejects(library.record(snapshotId), { code: 'template-not-found' });
    await until('no pin is left', async () => (await pins()).length === 0);
  });

  it('removed while they are published do not come back', async () => {
    const maker = await node();
    let removing: Promise<void> | undefined;
    around = async (request, call) => {
      const isManifest = request.op === 'put' && request.what.includes('manifests/');
      // It is too far to be ended.
      const answer = await call(isManifest ? {} : request.options);
      if (isManifest) removing = maker.library.remove(snapshotId);
      return answer;
    };
    await save(maker);
    await maker.stored.settled();
    await removing;
    assert.equal(await store.head(manifestKey(snapshotId)), undefined);
    assert.equal(maker.stored.stateOf(snapshotId), 'unknown');
  });

  it('are found by id and by name, the newest first', async () => {
    const maker = await node();
    for (const [index, id] of [testId(1), testId(2)].entries())
      await save(maker, id, {
        names: ['work'],
        createdAt: new Date(1_700_000_000_000 + index).toISOString(),
      });
    await maker.stored.settled();
    const other = await node();
    assert.equal((await other.stored.find('work'))?.snapshotId, testId(2));
    assert.equal((await other.stored.find(testId(1)))?.snapshotId, testId(1));
    for (const unknown of ['unknown', testId(3)]) assert.equal(await other.stored.find(unknown), undefined);
    assert.deepEqual(
      (await other.stored.list()).map((summary) => summary.snapshotId),
      [testId(2), testId(1)],
    );
  });

  it('share what clones touch first; one that cannot be read is as if there were none, and is replaced', async () => {
    const { stored } = await published();
    assert.equal(await stored.workingSetOf(memory), undefined);
    const recording = [{ page: 3, pageCount: 2 }];
    await stored.learnt(memory, [recording]);
    assert.deepEqual((await stored.workingSetOf(memory))?.recordings, [recording]);
    await store.replace(workingSetKey(snapshotId), Buffer.from('no working set'));
    assert.equal(await stored.workingSetOf(memory), undefined);
    around = failing;
    assert.equal(await stored.workingSetOf(memory), undefined);
    around = (request, call) => call(request.options);
    await stored.learnt(memory, [recording]);
    assert.deepEqual((await stored.workingSetOf(memory))?.recordings, [recording]);
  });

  it('are asked for what clones touch first beside the manifest, and once', async () => {
    const { library, stored } = await published();
    await stored.learnt(memory, [[{ page: 3, pageCount: 2 }]]);
    requests = [];
    const isAsked = Promise.withResolvers<void>();
    around = async (request, call) => {
      if (request.what.includes('working-sets/')) isAsked.resolve();
      // Would wait for ever if the one were asked for after the other.
      if (request.what.includes('manifests/')) await isAsked.promise;
      return call(request.options);
    };
    const arriving = library.record(snapshotId);
    await isAsked.promise;
    assert.ok((await stored.workingSetOf(memory))?.recordings.length, 'found while it arrives');
    await arriving;
    assert.equal(requests.filter((request) => request.includes('working-sets/')).length, 1);
  });

  it('that an earlier run did not publish are published after a start, parents first', async () => {
    around = failing;
    const maker = await node();
    await save(maker, testId(1));
    const child = { parent: testId(1), depth: 1, createdAt: new Date(1_700_000_001_000).toISOString() };
    await save(maker, testId(2), child);
    await maker.stored.close();
    around = (request, call) => call(request.options);
    const { library } = maker;
    const parts = { store: watched(), clusterKey: testKey, library, paths: library.paths, log };
    const again = await StoredSnapshots.open({ ...parts, blankDiskPath: join(dir, 'blank') });
    nodes[0] = { ...maker, stored: again };
    again.start();
    await until('both are there', async () => again.stateOf(testId(2)) === 'stored');
    const { parentId } = await again.load(testId(2));
    assert.equal(parentId, testId(1));
  });
});
