import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { FetchGate } from './fetch-gate.ts';
import { planAhead } from './fetch-plan.ts';
import { FrameCache } from './frame-cache.ts';
import { FrameSource } from './frame-source.ts';
import { framePages, TestReader, testImage } from './image-for-tests.ts';

const frameBytes = framePages * 4096;

function sourceOf(
  pages = 64 * framePages,
  options: { cacheBytes?: number; readTimeoutMs?: number; aroundBytes?: number } = {},
) {
  const reader = new TestReader(testImage(pages));
  const quarantined: number[] = [];
  const neighbours: number[] = [];
  const holdings = {
    cache: new FrameCache(options.cacheBytes ?? 64 * frameBytes),
    gate: new FetchGate(4),
    inFlight: new Map(),
    quarantined: new Map(),
  };
  const source = new FrameSource({
    frames: reader.image.frames,
    reader,
    holdings,
    onQuarantined: (frame) => quarantined.push(frame),
    readTimeoutMs: options.readTimeoutMs ?? 1_000,
    aroundBytes: options.aroundBytes ?? 0,
    onNeighbour: (frame) => neighbours.push(frame),
  });
  return { source, reader, holdings, quarantined, neighbours };
}

function collecting() {
  const arrived: number[] = [];
  const failed: number[] = [];
  return {
    arrived,
    failed,
    wanted: () => true,
    onFrame: async (frame: number) => void arrived.push(frame),
    onFailure: (frame: number) => void failed.push(frame),
  };
}

describe('frame source', () => {
  it('row 14: reads a frame once however many ask at once, and not again while it is held', async () => {
    const { source, reader } = sourceOf();
    reader.delayMs = 5;
    const fetched = await Promise.all(Array.from({ length: 20 }, () => source.fetch(3)));
    assert.ok(fetched.every(({ bytes }) => bytes.equals(reader.image.frameBytes(3))));
    assert.equal((await source.fetch(3)).origin, 'memory');
    assert.equal(reader.reads.length, 1);
  });

  it('holds no more than its capacity', async () => {
    const { source, reader, holdings } = sourceOf(64 * framePages, { cacheBytes: 3 * frameBytes });
    for (let frame = 0; frame < 10; frame++) await source.fetch(frame);
    assert.equal(holdings.cache.sizeBytes, 3 * frameBytes);
    await source.fetch(9);
    assert.equal(reader.reads.length, 10);
    await source.fetch(0);
    assert.equal(reader.reads.length, 11, 'the oldest had gone');
  });

  it('tries a store that did not answer again at the next read', async () => {
    const { source, reader, quarantined } = sourceOf();
    reader.failing.set('all', 'store-unavailable');
    await assert.rejects(source.fetch(1), { code: 'store-unavailable' });
    reader.failing.clear();
    assert.ok((await source.fetch(1)).bytes.equals(reader.image.frameBytes(1)));
    assert.deepEqual(quarantined, []);
  });

  it('quarantines a damaged frame: reported once, never read again', async () => {
    const { source, reader, quarantined } = sourceOf();
    reader.failing.set(1, 'snapshot-damaged');
    await assert.rejects(source.fetch(1), { code: 'snapshot-damaged' });
    reader.failing.clear();
    await assert.rejects(source.fetch(1), { code: 'snapshot-damaged', message: /quarantined/ });
    assert.deepEqual(quarantined, [1]);
    assert.equal(reader.reads.length, 1);
  });

  it('row 6: gives up on a reader that never answers', async () => {
    const { source, reader } = sourceOf(64, { readTimeoutMs: 20 });
    reader.held = new Promise(() => {});
    await assert.rejects(source.fetch(0), { code: 'deadline-exceeded' });
  });

  it('fetches a run by one read, and lets a fault join it', async () => {
    const { source, reader } = sourceOf();
    reader.delayMs = 5;
    const consumer = collecting();
    const [run] = planAhead(reader.image.frames, [2, 3, 4, 5]);
    const running = source.fetchRun(run!, consumer);
    await source.fetch(4);
    await running;
    assert.deepEqual(consumer.arrived, [2, 3, 4, 5]);
    assert.equal(reader.reads.length, 1);
  });

  it('does not let one damaged frame take its run along', async () => {
    const { source, reader, quarantined } = sourceOf();
    reader.failing.set(3, 'snapshot-damaged');
    const consumer = collecting();
    await source.fetchRun(planAhead(reader.image.frames, [2, 3, 4])[0]!, consumer);
    assert.deepEqual(consumer.arrived, [2, 4]);
    assert.deepEqual([consumer.failed, quarantined], [[3], [3]]);
  });

  it('reads neighbours along with a frame that somebody waits for, those that are not here', async () => {
    const { source, reader, neighbours } = sourceOf(64 * framePages, { aroundBytes: 4 * frameBytes });
    await source.fetch(10);
    assert.deepEqual(reader.reads[0]?.frames, [10, 11, 12, 13]);
    await source.fetch(9);
    assert.deepEqual(reader.reads[1]?.frames, [6, 7, 8, 9]);
    assert.deepEqual(
      neighbours.sort((a, b) => a - b),
      [6, 7, 8, 11, 12, 13],
    );
    await source.fetch(12);
    assert.equal(reader.reads.length, 2);
  });

  it('serves the frame that was asked for though a neighbour is damaged', async () => {
    const { source, reader } = sourceOf(64 * framePages, { aroundBytes: 4 * frameBytes });
    reader.failing.set(11, 'snapshot-damaged');
    assert.ok((await source.fetch(10)).bytes.equals(reader.image.frameBytes(10)));
  });

  it('lets faults overtake what is fetched ahead', async () => {
    const { source, reader } = sourceOf();
    const { promise, resolve } = Promise.withResolvers<void>();
    reader.held = promise;
    const ahead = [0, 1, 2, 3, 4, 5].map((frame) =>
      source.fetchRun(planAhead(reader.image.frames, [frame])[0]!, collecting()),
    );
    const fault = source.fetch(20);
    await new Promise(setImmediate);
    assert.deepEqual(
      reader.reads.map(({ frames }) => frames[0]),
      [0, 1, 2, 20],
      'one place of four is kept for faults',
    );
    resolve();
    await Promise.all([...ahead, fault]);
  });
});

describe('plan of reads ahead', () => {
  const { frames } = testImage(400 * framePages);

  it('joins neighbours and near ones, and begins with what is needed first', () => {
    const reads = planAhead(frames, [100, 7, 6, 101, 9, 50]);
    assert.deepEqual(
      reads.map((read) => read.frames),
      [[100, 101], [6, 7, 9], [50]],
    );
    assert.equal(reads[1]!.offsetBytes, 6 * frameBytes);
    assert.equal(reads[1]!.sizeBytes, 4 * frameBytes, 'the gap is read along');
  });

  it('keeps reads to a size', () => {
    const reads = planAhead(
      frames,
      Array.from({ length: 200 }, (_, frame) => frame),
    );
    assert.ok(reads.length > 1);
    assert.ok(reads.every(({ sizeBytes }) => sizeBytes <= 2 * 1024 * 1024));
    assert.equal(reads.flatMap((read) => read.frames).length, 200);
  });
});
