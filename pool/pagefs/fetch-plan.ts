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

/** The kernel and its programs keep near together in memory what is used together: 256 KiB. */
const regionPages = 64;

/** Frames that hold pages near those of `runs`, the nearest to the most first, of at most `budgetBytes` in the store. */
export function framesAround(
  extents: ExtentTable,
  frames: FrameTable,
  runs: readonly TouchedRun[],
  budgetBytes: number,
): number[] {
  const inside = new Set(framesInOrder(extents, runs));
  const touched = new Map<number, number>();
  for (const { page, pageCount } of runs)
    for (let at = page; at < page + pageCount; at++) {
      const region = Math.floor(at / regionPages);
      touched.set(region, (touched.get(region) ?? 0) + 1);
    }
  const scores = new Map<number, number>();
  for (const [row, frame] of extents.frame.entries()) {
    if (inside.has(frame)) continue;
    const start = extents.startPage[row]!;
    const last = start + extents.pageCount[row]! - 1;
    let score = scores.get(frame) ?? 0;
    for (let region = Math.floor(start / regionPages); region <= Math.floor(last / regionPages); region++)
      score += touched.get(region) ?? 0;
    if (score > 0) scores.set(frame, score);
  }
  const near = [...scores.keys()].sort((a, b) => scores.get(b)! - scores.get(a)! || a - b);
  let leftBytes = budgetBytes;
  return near.filter((frame) => {
    leftBytes -= frames.storedBytes[frame]!;
    return leftBytes >= 0;
  });
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
