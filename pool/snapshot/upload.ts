// Owns bringing spooled segments into the store, and making sure of those that are counted on there.
// Invariant: when `uploadSegments` returns, every segment is in the store with its size; one that was there is not sent
// again, and one that is there in part (a store that lost bytes) is replaced.
import { ThawError } from '../../shared/errors.ts';
import type { BlobStore, RequestOptions } from '../store/blob-store.ts';
import type { SegmentRef } from './manifest.ts';
import type { SpooledSegment } from './spool.ts';
import { segmentKey } from './store-keys.ts';

const uploadsAtOnce = 2;
const checksAtOnce = 16;
/** One segment over a link that is just fast enough to be of use. */
const uploadTimeoutMs = 300_000;

/** @returns bytes sent. */
export async function uploadSegments(
  store: BlobStore,
  segments: readonly SpooledSegment[],
  options: RequestOptions,
): Promise<number> {
  let sentBytes = 0;
  await inLanes(segments, uploadsAtOnce, async ({ sha256, sizeBytes, path }) => {
    const key = segmentKey(sha256);
    const there = await store.head(key, options);
    if (there?.sizeBytes === sizeBytes) return;
    if (there) await store.delete(key, options);
    const source = { path, offsetBytes: 0, sizeBytes };
    if ((await store.putFile(key, source, { ...options, timeoutMs: uploadTimeoutMs })) === 'created')
      sentBytes += sizeBytes;
  });
  return sentBytes;
}

/** @throws ThawError `snapshot-damaged` when one of them is not there as it was. */
export async function checkSegments(
  store: BlobStore,
  segments: readonly SegmentRef[],
  options: RequestOptions,
): Promise<void> {
  await inLanes(segments, checksAtOnce, async ({ sha256, sizeBytes }) => {
    const there = await store.head(segmentKey(sha256), options);
    if (there?.sizeBytes !== sizeBytes)
      throw new ThawError('snapshot-damaged', `segment ${sha256} is missing or cut off`);
  });
}

async function inLanes<T>(
  items: readonly T[],
  lanes: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const queue = [...items].reverse();
  const lane = async () => {
    for (let item = queue.pop(); item !== undefined; item = queue.pop()) await work(item);
  };
  await Promise.all(Array.from({ length: Math.min(lanes, queue.length) }, lane));
}
