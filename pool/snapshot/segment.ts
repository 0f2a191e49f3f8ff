// Owns segments and frames: how pages become verified compressed frames, and which ranges of a segment to read for which.
// Refuses to own transport (frame-reader.ts, store). Invariant: `openFrame` returns the bytes that were sealed, or throws.
import { createHash } from 'node:crypto';
import { constants, type ZstdOptions, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { ThawError } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';
import { type ExtentTable, pageBytes, piecesOf } from './extents.ts';

/**
 * 128 KiB: what a page fault waits for when its frame is not there. Bigger frames compress a little better (256 KiB: 3 %)
 * and cost every random fault twice the transfer; smaller ones need more rows in the manifest.
 */
export const pagesPerFrame = 32;
/** What a manifest may claim. */
export const maxPagesPerFrame = 256;
/** Bounds one upload, and what is repeated when one fails. */
export const maxSegmentBytes = 64 * 1024 * 1024;
/** What zstd adds at most to bytes that do not compress. */
const worstOverheadBytes = 1024;
export const hashBytes = 32;

/** Deterministic: the same pages give the same bytes as long as the zstd library is the same. */
const compression: ZstdOptions = {
  params: {
    [constants.ZSTD_c_compressionLevel]: 3,
    [constants.ZSTD_c_contentSizeFlag]: 1,
    // The frame's SHA-256 covers the stored bytes.
    [constants.ZSTD_c_checksumFlag]: 0,
  },
};

/** Row `i` is frame `i`: where it lies, and the SHA-256 of its stored (compressed) bytes. */
export interface FrameTable {
  /** Index into the manifest's segments. */
  readonly segment: Uint32Array;
  readonly offsetBytes: Uint32Array;
  readonly storedBytes: Uint32Array;
  /** Pages it holds when decompressed. */
  readonly pageCount: Uint32Array;
  /** 32 bytes a frame, one after the other. */
  readonly sha256: Uint8Array;
}

/** One ranged read that brings several frames of one segment. */
export interface FrameRead {
  segment: number;
  offsetBytes: number;
  sizeBytes: number;
  /** Ascending by position. */
  frames: number[];
}

export interface ReadPlanOptions {
  /** Bytes nobody asked for that are read rather than starting another request. */
  maxGapBytes?: number;
  maxReadBytes?: number;
}

export const emptyFrames = (count = 0): FrameTable => ({
  segment: new Uint32Array(count),
  offsetBytes: new Uint32Array(count),
  storedBytes: new Uint32Array(count),
  pageCount: new Uint32Array(count),
  sha256: new Uint8Array(count * hashBytes),
});

export function sealFrame(pages: Uint8Array): { stored: Buffer; sha256: Buffer } {
  const stored = zstdCompressSync(pages, compression);
  return { stored, sha256: createHash('sha256').update(stored).digest() };
}

/** Verifies, then decompresses. @throws ThawError `snapshot-damaged`; never wrong bytes. */
export function openFrame(frames: FrameTable, frame: number, stored: Uint8Array): Buffer {
  const refuse = (why: string, cause?: unknown): never => {
    metrics.verifyFailures.inc();
    throw new ThawError('snapshot-damaged', `frame ${frame} ${why}`, { cause });
  };
  const count = frames.pageCount[frame];
  if (count === undefined) return refuse('is not in the manifest');
  if (stored.length !== frames.storedBytes[frame]) return refuse('does not have its length');
  const sha256 = createHash('sha256').update(stored).digest();
  if (sha256.compare(frames.sha256, frame * hashBytes, (frame + 1) * hashBytes) !== 0)
    return refuse('does not have its digest');
  const plainBytes = count * pageBytes;
  try {
    // The bound is for a manifest whose signer was wrong: its frame may claim to be anything. In one piece: pieces
    // are put together by another copy.
    const plain = zstdDecompressSync(stored, { maxOutputLength: plainBytes, chunkSize: plainBytes + 1 });
    return plain.length === plainBytes ? plain : refuse('is not as long as its pages');
  } catch (error) {
    return refuse('cannot be decompressed', error);
  }
}

/** @throws ThawError `snapshot-damaged`. */
export function checkFrames(frames: FrameTable, segmentBytes: readonly number[]): void {
  const { segment, offsetBytes, storedBytes, pageCount, sha256 } = frames;
  const count = segment.length;
  const refuse = (frame: number, why: string) => {
    throw new ThawError('snapshot-damaged', `frame ${frame} ${why}`);
  };
  if ([offsetBytes, storedBytes, pageCount].some(({ length }) => length !== count))
    refuse(count, 'is not complete');
  if (sha256.length !== count * hashBytes) refuse(count, 'has no digest');
  for (let frame = 0; frame < count; frame++) {
    const pages = pageCount[frame]!;
    if (pages < 1 || pages > maxPagesPerFrame) refuse(frame, `has ${pages} pages`);
    if (storedBytes[frame]! < 1 || storedBytes[frame]! > pages * pageBytes + worstOverheadBytes)
      refuse(frame, `has ${storedBytes[frame]} stored bytes`);
    const sizeBytes = segmentBytes[segment[frame]!];
    if (sizeBytes === undefined) refuse(frame, 'names a segment that is not there');
    else if (offsetBytes[frame]! + storedBytes[frame]! > sizeBytes) refuse(frame, 'ends beyond its segment');
  }
}

/** Few large reads that bring all of `wanted` (any order, repeats allowed), by segment and position. */
export function planReads(
  frames: FrameTable,
  wanted: Iterable<number>,
  options: ReadPlanOptions = {},
): FrameRead[] {
  const { maxGapBytes = 64 * 1024, maxReadBytes = 8 * 1024 * 1024 } = options;
  const { segment, offsetBytes, storedBytes } = frames;
  const order = Uint32Array.from(new Set(wanted)).sort(
    (a, b) => segment[a]! - segment[b]! || offsetBytes[a]! - offsetBytes[b]!,
  );
  const reads: FrameRead[] = [];
  for (const frame of order) {
    const start = offsetBytes[frame]!;
    const endBytes = start + storedBytes[frame]!;
    const last = reads.at(-1);
    const gapBytes = last ? start - (last.offsetBytes + last.sizeBytes) : 0;
    const joins = last?.segment === segment[frame] && gapBytes <= maxGapBytes;
    if (last && joins && endBytes - last.offsetBytes <= maxReadBytes) {
      last.sizeBytes = Math.max(last.sizeBytes, endBytes - last.offsetBytes);
      last.frames.push(frame);
    } else {
      reads.push({
        segment: segment[frame]!,
        offsetBytes: start,
        sizeBytes: storedBytes[frame]!,
        frames: [frame],
      });
    }
  }
  return reads;
}

/** The distinct frames that hold these pages, in order of first need. */
export function framesOf(table: ExtentTable, page: number, pageCount: number): number[] {
  const frames = new Set<number>();
  for (const { frame } of piecesOf(table, page, pageCount)) if (frame >= 0) frames.add(frame);
  return [...frames];
}
