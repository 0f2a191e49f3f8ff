import assert from 'node:assert/strict';
import { access, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, it } from 'node:test';
import { metrics } from '../../shared/metrics.ts';
import { type BlobStore, StoreError } from '../store/blob-store.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { type TestImage, testImage, testKey, wholeCapture } from './capture-for-tests.ts';
import { FrameReader, type FrameTier, storeTier } from './frame-reader.ts';
import type { Manifest } from './manifest.ts';
import { materialise } from './materialise-image.ts';
import { Publisher } from './publish.ts';
import { planReads } from './segment.ts';
import { segmentKey } from './store-keys.ts';
import { verifySnapshot } from './verify.ts';

describe('reading frames of a store that is damaged', () => {
  let dir: string;
  let store: BlobStore;
  let image: TestImage;
  let manifest: Manifest;
  let other: Manifest;
  let segment: Buffer;
  let path: string;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-frames-'));
    store = await DirectoryStore.open(join(dir, 'store'));
    const options = { store, clusterKey: testKey, spoolDir: join(dir, 'spool'), threads: 1, reserveBytes: 0 };
    const publisher = await Publisher.open(options);
    image = testImage(1);
    ({ manifest } = await publisher.publish(await wholeCapture(join(dir, 'a'), 1, image)));
    ({ manifest: other } = await publisher.publish(await wholeCapture(join(dir, 'b'), 2, testImage(2))));
    await publisher.close();
    path = join(dir, 'store', 'objects', segmentKey(manifest.segments[0]!.sha256));
    segment = await readFile(path);
  });
  beforeEach(() => writeFile(path, segment));
  after(() => rm(dir, { recursive: true, force: true }));

  const whole: FrameTier = {
    name: 'whole',
    read: async (_, { offsetBytes, sizeBytes }) => segment.subarray(offsetBytes, offsetBytes + sizeBytes),
  };
  const failing = (failure: 'unavailable' | 'deadline'): FrameTier => ({
    name: failure,
    read: async () => {
      throw new StoreError(failure, failure);
    },
  });
  const nothing: FrameTier = { name: 'nothing', read: async () => undefined };
  const damage = (offsetBytes: number) => {
    const bytes = Buffer.from(segment);
    bytes[offsetBytes]! ^= 4;
    return writeFile(path, bytes);
  };
  const middleOf = (frame: number) =>
    manifest.frames.offsetBytes[frame]! + Math.floor(manifest.frames.storedBytes[frame]! / 2);
  const readAll = async (reader: FrameReader) => {
    for (const plan of planReads(manifest.frames, manifest.frames.segment.keys())) await reader.read(plan);
  };
  const target = () => join(dir, 'materialised');

  it('row 7, flipped: the frame comes from the next tier, or nobody gets it', async () => {
    await damage(middleOf(3));
    const damaged: number[] = [];
    const onDamaged = (frame: number) => damaged.push(frame);
    const both = new FrameReader({ manifest, tiers: [storeTier(store), whole], onDamaged });
    await materialise(manifest, 'memory', both, target());
    assert.ok((await readFile(target())).equals(image.memory));
    await rm(target());
    assert.deepEqual(damaged, []);
    const alone = new FrameReader({ manifest, tiers: [storeTier(store)], onDamaged });
    await assert.rejects(materialise(manifest, 'memory', alone, target()), { code: 'snapshot-damaged' });
    await assert.rejects(access(target()), { code: 'ENOENT' });
    await assert.rejects(access(`${target()}.partial`), { code: 'ENOENT' });
    assert.deepEqual(damaged, [3]);
  });

  it('row 7: quarantines a damaged frame: it is not read again, the others are', async () => {
    await damage(middleOf(3));
    let reads = 0;
    const counted: FrameTier = {
      name: 'counted',
      read: (...args) => {
        reads += 1;
        return storeTier(store).read(...args);
      },
    };
    const reader = new FrameReader({ manifest, tiers: [counted] });
    const failuresBefore = (await metrics.verifyFailures.get()).values[0]?.value ?? 0;
    await assert.rejects(reader.readFrame(3), { code: 'snapshot-damaged' });
    assert.ok(((await metrics.verifyFailures.get()).values[0]?.value ?? 0) > failuresBefore);
    await assert.rejects(reader.readFrame(3), { code: 'snapshot-damaged' });
    assert.equal(reads, 1);
    await reader.readFrame(4);
    assert.deepEqual(reader.quarantined, [3]);
  });

  it('row 7, truncated: every frame that is not whole is refused', async () => {
    await truncate(path, middleOf(5));
    const reader = new FrameReader({ manifest, tiers: [storeTier(store)] });
    await reader.readFrame(4);
    await assert.rejects(reader.readFrame(5), { code: 'snapshot-damaged' });
    await assert.rejects(readAll(new FrameReader({ manifest, tiers: [storeTier(store)] })), {
      code: 'snapshot-damaged',
    });
    await readAll(new FrameReader({ manifest, tiers: [storeTier(store), whole] }));
  });

  it('is told frame by frame when a whole snapshot is verified', async () => {
    const tier = storeTier(store);
    const frames = manifest.frames.segment.length;
    assert.deepEqual((await verifySnapshot(manifest, tier)).damaged, []);
    await damage(middleOf(3));
    const flipped = await verifySnapshot(manifest, tier);
    assert.deepEqual([flipped.frames, flipped.damaged.map(({ frame }) => frame)], [frames, [3]]);
    await truncate(path, middleOf(5));
    const cut = (await verifySnapshot(manifest, tier)).damaged.map(({ frame }) => frame);
    assert.deepEqual(cut, [3, ...Array.from({ length: frames - 5 }, (_, at) => at + 5)]);
    await assert.rejects(verifySnapshot(manifest, failing('unavailable')), { code: 'store-unavailable' });
  });

  it('row 7, swapped with another segment: refused', async () => {
    await writeFile(path, await store.get(segmentKey(other.segments[0]!.sha256)));
    const reader = new FrameReader({ manifest, tiers: [storeTier(store)] });
    for (const frame of manifest.frames.segment.keys())
      await assert.rejects(reader.readFrame(frame), { code: 'snapshot-damaged' });
  });

  it('missing: refused, with the segment’s name', async () => {
    const reader = new FrameReader({ manifest, tiers: [nothing] });
    await assert.rejects(reader.readFrame(0), { code: 'snapshot-damaged', message: /is missing/ });
    await assert.rejects(reader.readFrame(99_999), { code: 'snapshot-damaged' });
  });

  it('not answering is no damage: the error says so, and it is asked again', async () => {
    for (const [failure, code] of [
      ['unavailable', 'store-unavailable'],
      ['deadline', 'deadline-exceeded'],
    ] as const) {
      const reader = new FrameReader({ manifest, tiers: [nothing, failing(failure)] });
      await assert.rejects(reader.readFrame(0), { code });
      assert.deepEqual(reader.quarantined, []);
      const rescued = new FrameReader({ manifest, tiers: [failing(failure), whole] });
      assert.equal((await rescued.read(planReads(manifest.frames, [0, 1, 2])[0]!))[0]?.tier, 'whole');
    }
  });

  it('ends in time when its caller gives up', async () => {
    const stuck: FrameTier = { name: 'stuck', read: () => new Promise(() => {}) };
    const reader = new FrameReader({ manifest, tiers: [stuck] });
    await assert.rejects(materialise(manifest, 'memory', reader, target(), { timeoutMs: 50 }), {
      code: 'deadline-exceeded',
    });
  });
});
