// Owns the order in which frames are fetched ahead: few large reads, what is needed first in the first of them.
// Refuses to own doing it. Invariant: every frame asked for is in exactly one read.
import type { ExtentTable } from '../snapshot/extents.ts';
import { type FrameRead, type FrameTable, framesOf, planReads } from '../snapshot/segment.ts';
import type { TouchedRun } from '../snapshot/working-set.ts';

/** The distinct frames that hold these pages, in the order of first need. */
export function framesInOrder(extents: ExtentTable, runs: readonly TouchedRun[]): number[] {
  const frames = new Set<number>();
  for (const { page, pageCount } of runs)
    for (const frame of framesOf(extents, page, pageCount)) frames.add(frame);
  return [...frames];
}

/**
 * A gap up to 128 KiB is read along: it costs less than one more request. A store's first byte takes about as long as
 * the next MiBs; a larger read would hold faults that join it too long, and more memory when it is decoded.
 */
const limits = { maxGapBytes: 128 * 1024, maxReadBytes: 2 * 1024 * 1024 };

/** Nobody waits for these: fewer requests count for more than a MiB. */
const unhurried = { maxGapBytes: 512 * 1024, maxReadBytes: 4 * 1024 * 1024 };

/** As few reads as possible. */
export const planLater = (frames: FrameTable, wanted: readonly number[]): FrameRead[] =>
  planReads(frames, wanted, unhurried);

/** @param wanted in the order of need. */
export function planAhead(frames: FrameTable, wanted: readonly number[]): FrameRead[] {
  const ranks = new Map(wanted.map((frame, rank) => [frame, rank]));
  const rankOf = (read: FrameRead) => Math.min(...read.frames.map((frame) => ranks.get(frame)!));
  return planReads(frames, wanted, limits)
    .map((read) => ({ read, rank: rankOf(read) }))
    .sort((a, b) => a.rank - b.rank)
    .map(({ read }) => read);
}
