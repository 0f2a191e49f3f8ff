import assert from 'node:assert/strict';
import { access, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { allBlobs, type BlobStore } from '../store/blob-store.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import {
  deltaCapture,
  type TestImage,
  testId,
  testImage,
  testKey,
  testPage,
  wholeCapture,
} from './capture-for-tests.ts';
import { Catalogue } from './catalogue.ts';
import { pageBytes } from './extents.ts';
import { FrameReader, storeTier } from './frame-reader.ts';
import { wholeFileSource } from './image-source.ts';
import { imageNames, type Manifest } from './manifest.ts';
import { materialise } from './materialise-image.ts';
import { type LocalCapture, Publisher } from './publish.ts';
import { framesOf as framesOfPages } from './segment.ts';

describe('publishing', () => {
  let dir: string;
  let store: BlobStore;
  let publisher: Publisher;
  let number = 1;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-publish-'));
    store = await DirectoryStore.open(join(dir, 'store'));
    publisher = await open();
  });
  after(async () => {
    await publisher.close();
    await rm(dir, { recursive: true, force: true });
  });

  const open = () =>
    Publisher.open({ store, clusterKey: testKey, spoolDir: join(dir, 'spool'), threads: 2, reserveBytes: 0 });
  const captureOf = async (image: TestImage) => {
    number += 1;
    return { capture: await wholeCapture(join(dir, `capture-${number}`), number, image), image };
  };
  const childOf = (parent: LocalCapture, image: TestImage, dirty: { memory: number[]; disk: number[] }) => {
    number += 1;
    return deltaCapture(join(dir, `capture-${number}`), number, image, parent, dirty);
  };
  const assertHolds = async (manifest: Manifest, image: TestImage) => {
    const reader = new FrameReader({ manifest, tiers: [storeTier(store)] });
    for (const name of imageNames) {
      const path = join(dir, 'materialised');
      await materialise(manifest, name, reader, path);
      assert.ok((await readFile(path)).equals(image[name]), `${name} came back as it was`);
      await rm(path);
    }
  };

  it('brings memory, disk and devices back as they were', async () => {
    const { capture, image } = await captureOf(testImage(1));
    const { manifest, pages, uploadedBytes } = await publisher.publish(capture);
    const loaded = await new Catalogue({ store, clusterKey: testKey }).load(capture.snapshotId);
    assert.deepEqual(loaded, manifest);
    assert.equal(manifest.depth, 0);
    assert.equal(pages.stored, 768 + 20 + 2);
    assert.ok(uploadedBytes > 0 && manifest.addedBytes < image.memory.length / 2, 'it was compressed');
    await assertHolds(loaded, image);
    assert.deepEqual(await readdir(join(dir, 'spool')), [], 'nothing is left in the spool');
    assert.deepEqual((await store.listKeys('pins/')).entries, [], 'no pin is left');
  });

  it('uploads nothing for the same snapshot again, and only a manifest for the same content', async () => {
    const { capture, image } = await captureOf(testImage(2));
    const first = await publisher.publish(capture);
    const again = await publisher.publish(capture);
    assert.equal(again.uploadedBytes, 0);
    assert.deepEqual(again.manifest, first.manifest);
    const { capture: twin } = await captureOf(image);
    const second = await publisher.publish(twin);
    assert.deepEqual(second.manifest.segments, first.manifest.segments);
    const { sizeBytes } = (await store.head(`manifests/${twin.snapshotId}`))!;
    assert.equal(second.uploadedBytes, sizeBytes);
  });

  it('stores of a child only what changed, down to any depth, in one flat table', async () => {
    const { capture: root, image } = await captureOf(testImage(3));
    let parent = root;
    const rootManifest = (await publisher.publish(root)).manifest;
    let manifest = rootManifest;
    for (let depth = 1; depth <= 10; depth++) {
      const changed = [depth * 7, depth * 7 + 1, 900 - depth, 103 + depth * 4];
      for (const page of changed) testPage(depth * 1_000_000 + page).copy(image.memory, page * pageBytes);
      const wiped = 500 + depth * 4;
      image.memory.fill(0, wiped * pageBytes, (wiped + 1) * pageBytes);
      testPage(depth).copy(image.disk, depth * pageBytes);
      const child = await childOf(parent, image, {
        // 600 was written to and is as before: equal to the parent's.
        memory: [...changed, wiped, 600].sort((a, b) => a - b),
        disk: [depth],
      });
      const published = await publisher.publish(child);
      manifest = published.manifest;
      assert.equal(manifest.depth, depth);
      assert.equal(published.pages.equalToParent, 1);
      assert.ok(manifest.addedBytes < rootManifest.addedBytes / 20, `${manifest.addedBytes} bytes added`);
      await assertHolds(manifest, image);
      parent = child;
    }
    assert.equal(manifest.segments.length, 11);
    await new Catalogue({ store, clusterKey: testKey }).remove(parent.parentId!);
    await assertHolds(manifest, image);
  });

  it('drops pages equal to the parent’s and zero pages, also of a whole page file', async () => {
    const { capture: root, image } = await captureOf(testImage(4));
    await publisher.publish(root);
    testPage(77).copy(image.memory, 10 * pageBytes);
    image.memory.fill(0, 20 * pageBytes, 21 * pageBytes);
    const { capture: whole } = await captureOf(image);
    const pagesPath = whole.memory.sources[0]!.path;
    const child: LocalCapture = {
      ...whole,
      parentId: root.snapshotId,
      memory: {
        ...whole.memory,
        sources: [await wholeFileSource(pagesPath)],
        parent: root.memory.sources,
      },
      disk: { ...whole.disk, sources: [] },
    };
    const { manifest, pages } = await publisher.publish(child);
    assert.equal(pages.equalToParent, 1024 - 2);
    assert.deepEqual([pages.stored - 2, pages.zero], [1, 1]);
    await assertHolds(manifest, image);
  });

  const stretchesOf = (pages: number[]) =>
    pages.map((page) => ({ offsetBytes: page * pageBytes, sizeBytes: pageBytes }));
  const framesOf = ({ images: { memory } }: Manifest, pages: number[]) => [
    ...new Set(pages.flatMap((page) => framesOfPages(memory.extents, page, 1))),
  ];

  it('lays what is needed first out together', async () => {
    const { capture, image } = await captureOf(testImage(5));
    const first = [3, 40, 200, 201, 700, 1000];
    capture.memory.first = stretchesOf(first);
    const { manifest } = await publisher.publish(capture);
    assert.equal(framesOf(manifest, first).length, 1, 'six pages from all over stand in one frame');
    await assertHolds(manifest, image);
  });

  it('gathers what a child needs first and its parent has scattered, and leaves what stands together there', async () => {
    const { capture: root, image } = await captureOf(testImage(8));
    const { manifest: below } = await publisher.publish(root);
    const together = Array.from({ length: 24 }, (_, at) => 4 + at);
    const scattered = [100, 200, 300, 400, 600, 700];
    const changed = [150, 650];
    for (const page of changed) testPage(page).copy(image.memory, page * pageBytes);
    const { capture } = await captureOf(image);
    const first = [...together, ...scattered, ...changed].sort((a, b) => a - b);
    const { manifest, pages } = await publisher.publish({
      ...capture,
      parentId: root.snapshotId,
      memory: { ...capture.memory, parent: root.memory.sources, first: stretchesOf(first) },
      disk: { ...capture.disk, sources: [] },
    });
    const zeros = scattered.filter((page) => framesOf(below, [page]).length === 0).length;
    assert.equal(pages.stored - 2, scattered.length - zeros + changed.length);
    assert.ok(framesOf(below, first).length >= 7, `${framesOf(below, first)} of the parent`);
    assert.ok(framesOf(manifest, [...scattered, ...changed]).length <= 2, 'its own stand together');
    assert.equal(framesOf(manifest, together).length, framesOf(below, together).length);
    await assertHolds(manifest, image);
  });

  it('gives the same bytes whatever the number of threads', async () => {
    const { capture, image } = await captureOf(testImage(6, 16));
    const { manifest } = await publisher.publish(capture);
    const alone = await DirectoryStore.open(join(dir, 'store-alone'));
    const single = await Publisher.open({
      store: alone,
      clusterKey: testKey,
      spoolDir: join(dir, 'spool-alone'),
      threads: 1,
      reserveBytes: 0,
    });
    const { capture: twin } = await captureOf(image);
    const other = await single.publish(twin);
    await single.close();
    assert.deepEqual(other.manifest.segments, manifest.segments);
    assert.deepEqual(other.manifest.frames, manifest.frames);
  });

  it('refuses an id that is taken by another content, and a parent that is not there', async () => {
    const { capture } = await captureOf(testImage(7));
    await publisher.publish(capture);
    await assert.rejects(publisher.publish({ ...capture, nonce: 'f'.repeat(32) }), { code: 'conflict' });
    const { capture: orphan } = await captureOf(testImage(8));
    await assert.rejects(publisher.publish({ ...orphan, parentId: testId(999_999) }), {
      code: 'template-not-found',
    });
    assert.equal(await store.head(`manifests/${orphan.snapshotId}`), undefined);
  });

  it('refuses a capture whose runs are not whole pages in order', async () => {
    const { capture } = await captureOf(testImage(7));
    const { path } = capture.memory.sources[0]!;
    const at = (...places: [number, number][]) =>
      places.map(([offsetBytes, sizeBytes]) => ({ offsetBytes, sizeBytes, fileOffsetBytes: 0 }));
    for (const runs of [
      at([4096, 4096], [4096, 4096]),
      at([8192, 4096], [0, 4096]),
      at([100, 4096]),
      at([0, 100]),
      at([4 << 20, 4096]),
    ])
      await assert.rejects(
        publisher.publish({ ...capture, memory: { ...capture.memory, sources: [{ path, runs }] } }),
        { code: 'bad-request' },
      );
  });

  it('gives two calls at once for one snapshot one publish', async () => {
    const { capture } = await captureOf(testImage(9));
    const [a, b] = await Promise.all([publisher.publish(capture), publisher.publish(capture)]);
    assert.equal(a, b);
  });

  it('publishes several snapshots at once, and one that fails harms no other', async () => {
    const made = await Promise.all([testImage(10), testImage(11), testImage(12)].map(captureOf));
    await truncate(made[1]!.capture.memory.sources[0]!.path, 100_000);
    const outcomes = await Promise.allSettled(made.map(({ capture }) => publisher.publish(capture)));
    assert.deepEqual(
      outcomes.map(({ status }) => status),
      ['fulfilled', 'rejected', 'fulfilled'],
    );
    assert.equal((outcomes[1] as PromiseRejectedResult).reason.code, 'snapshot-damaged');
    for (const at of [0, 2])
      await assertHolds(
        (outcomes[at] as PromiseFulfilledResult<{ manifest: Manifest }>).value.manifest,
        made[at]!.image,
      );
    assert.deepEqual(await readdir(join(dir, 'spool')), []);
  });

  it('mends a segment that the store has only in part', async () => {
    const { capture, image } = await captureOf(testImage(13));
    const { manifest } = await publisher.publish(capture);
    const { sha256 } = manifest.segments[0]!;
    const path = join(dir, 'store', 'objects', 'segments', sha256.slice(0, 2), sha256);
    await truncate(path, 1000);
    const { capture: twin } = await captureOf(image);
    const second = await publisher.publish(twin);
    assert.ok(second.uploadedBytes > manifest.addedBytes);
    await assertHolds(manifest, image);
  });

  it('refuses to build on a parent whose segment is gone', async () => {
    const { capture, image } = await captureOf(testImage(14));
    const { manifest } = await publisher.publish(capture);
    const { sha256 } = manifest.segments[0]!;
    await store.delete(`segments/${sha256.slice(0, 2)}/${sha256}`);
    testPage(1).copy(image.memory, 0);
    const child = await childOf(capture, image, { memory: [0], disk: [] });
    await assert.rejects(publisher.publish(child), { code: 'snapshot-damaged' });
    assert.equal(await store.head(`manifests/${child.snapshotId}`), undefined);
  });

  it('ends in time, with nothing left, when its caller gives up', async () => {
    const { capture } = await captureOf(testImage(15, 32));
    const controller = new AbortController();
    const publishing = publisher.publish(capture, {
      signal: controller.signal,
      onStage: (stage) => stage === 'pin' && controller.abort(),
    });
    await assert.rejects(publishing, { code: 'deadline-exceeded' });
    assert.equal(await store.head(`manifests/${capture.snapshotId}`), undefined);
    assert.deepEqual(await readdir(join(dir, 'spool')), []);
    assert.deepEqual((await store.listKeys('pins/')).entries, []);
    await assert.rejects(publisher.publish(capture, { timeoutMs: 1 }), { code: 'deadline-exceeded' });
  });

  it('checks the reserve before it reads anything', async () => {
    const { capture } = await captureOf(testImage(16));
    const spoolDir = join(dir, 'spool-full');
    const full = await Publisher.open({
      store,
      clusterKey: testKey,
      spoolDir,
      threads: 1,
      reserveBytes: Number.MAX_SAFE_INTEGER / 2,
    });
    await assert.rejects(full.publish(capture), { code: 'no-space' });
    await full.close();
    assert.deepEqual(await readdir(spoolDir), []);
  });

  it('empties what a crash left in the spool', async () => {
    const spoolDir = join(dir, 'spool-crash');
    await (await Publisher.open({ store, clusterKey: testKey, spoolDir })).close();
    await writeFile(join(spoolDir, 'left-over'), 'x');
    await (await Publisher.open({ store, clusterKey: testKey, spoolDir })).close();
    await assert.rejects(access(join(spoolDir, 'left-over')), { code: 'ENOENT' });
  });

  it('names every segment by the digest of its bytes', async () => {
    const { createHash } = await import('node:crypto');
    for await (const { key } of allBlobs(store, 'segments/')) {
      const digest = createHash('sha256')
        .update(await store.get(key))
        .digest('hex');
      assert.ok(key.endsWith(digest), key);
    }
  });
});
