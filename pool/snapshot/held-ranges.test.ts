import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { ByteRange } from '../store/blob-store.ts';
import type { FrameTier } from './frame-reader.ts';
import { HeldRanges } from './held-ranges.ts';

const segment = Buffer.from(Array.from({ length: 256 }, (_, at) => at));
const range = (offsetBytes: number, sizeBytes: number): ByteRange => ({ offsetBytes, sizeBytes });

class CountingTier implements FrameTier {
  readonly name = 'store';
  reads = 0;
  answer: Promise<void> = Promise.resolve();

  async read(_: string, { offsetBytes, sizeBytes }: ByteRange): Promise<Buffer> {
    this.reads++;
    await this.answer;
    return segment.subarray(offsetBytes, offsetBytes + sizeBytes);
  }
}

describe('ranges that are held before they are asked for', () => {
  it('answer every read inside them without the store, and no other', async () => {
    const store = new CountingTier();
    const held = new HeldRanges(store, 1024);
    await held.hold('a', range(64, 64), {});
    assert.deepEqual(await held.read('a', range(70, 3)), Buffer.from([70, 71, 72]));
    assert.deepEqual(await held.read('a', range(64, 64)), segment.subarray(64, 128));
    for (const [name, other] of [
      ['a', range(63, 2)],
      ['a', range(127, 2)],
      ['b', range(70, 3)],
    ] as const)
      assert.equal(await held.read(name, other), undefined);
    assert.equal(store.reads, 1);
  });

  it('are waited for while they come, and are not there when they do not', async () => {
    const store = new CountingTier();
    const held = new HeldRanges(store, 1024);
    const { promise, resolve } = Promise.withResolvers<void>();
    store.answer = promise;
    const holding = held.hold('a', range(0, 64), {});
    const read = held.read('a', range(8, 1));
    resolve();
    assert.deepEqual(await read, Buffer.from([8]));
    await holding;
    const failing = Promise.withResolvers<void>();
    store.answer = failing.promise;
    const lost = held.hold('a', range(128, 64), {});
    const missed = held.read('a', range(130, 1));
    failing.reject(new Error('injected'));
    assert.equal(await missed, undefined);
    await lost;
    assert.equal(await held.read('a', range(130, 1)), undefined);
  });

  it('are bounded: the oldest go', async () => {
    const held = new HeldRanges(new CountingTier(), 128);
    for (const offsetBytes of [0, 64, 128]) await held.hold('a', range(offsetBytes, 64), {});
    assert.equal(await held.read('a', range(0, 1)), undefined);
    assert.deepEqual(await held.read('a', range(64, 1)), Buffer.from([64]));
    assert.deepEqual(await held.read('a', range(128, 1)), Buffer.from([128]));
  });
});
