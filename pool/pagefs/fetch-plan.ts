// Owns the order in which frames are fetched ahead: few large reads, what is needed first in the first of them.
// Refuses to own doing it. Invariant: every frame asked for is in exactly one read; a read is one segment's, ascending.
import { type ExtentTable, piecesOf } from '../snapshot/extents.ts';
import type { FrameRead, FrameTable } from '../snapshot/segment.ts';
import type { TouchedRun } from '../snapshot/working-set.ts';
import { soleRead } from './frame-source.ts';

/** The distinct frames that hold these pages, in the order of first need. */
export function framesInOrder(extents: ExtentTable, runs: readonly TouchedRun[]): number[] {
  const frames = new Set<number>();
  for (const { page, pageCount } of runs)
    for (const { frame } of piecesOf(extents, page, pageCount)) if (frame >= 0) frames.add(frame);
  return [...frames];
}

/** A gap up to this size is read along: it costs less than one more request. */
const maxGapBytes = 128 * 1024;
/** A store's first byte takes about as long as 1 MiB of transfer; a read decodes to a few times its size in memory. */
const maxReadBytes = 2 * 1024 * 1024;

/** @param wanted in the order of need, without repetition. */
export function planAhead(frames: FrameTable, wanted: readonly number[]): FrameRead[] {
  const rankOf = new Map(wanted.map((frame, rank) => [frame, rank]));
  const byPosition = wanted.toSorted(
    (a, b) => frames.segment[a]! - frames.segment[b]! || frames.offsetBytes[a]! - frames.offsetBytes[b]!,
  );
  const reads: { read: FrameRead; rank: number }[] = [];
  for (const frame of byPosition) {
    const last = reads.at(-1);
    const rank = rankOf.get(frame)!;
    if (last && extend(last.read, soleRead(frames, frame))) last.rank = Math.min(last.rank, rank);
    else reads.push({ read: soleRead(frames, frame), rank });
  }
  return reads.sort((a, b) => a.rank - b.rank).map(({ read }) => read);
}

/** @returns false when `next` is too far away, or the read would become too large. */
function extend(read: FrameRead, next: FrameRead): boolean {
  const gapBytes = next.offsetBytes - (read.offsetBytes + read.sizeBytes);
  const sizeBytes = next.offsetBytes + next.sizeBytes - read.offsetBytes;
  if (next.segment !== read.segment || gapBytes > maxGapBytes || sizeBytes > maxReadBytes) return false;
  read.sizeBytes = sizeBytes;
  read.frames.push(...next.frames);
  return true;
}
