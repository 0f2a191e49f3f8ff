// Owns segments and frames: how pages become verified compressed frames, and which ranges of a segment to read for which.
// Refuses to own transport (frame-reader.ts, store). Invariant: `openFrame` returns the bytes that were sealed, or throws.
import type { ExtentTable } from './extents.ts';

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

/** Verifies, then decompresses. @throws ThawError `snapshot-damaged`; never wrong bytes. */
export declare function openFrame(frames: FrameTable, frame: number, stored: Uint8Array): Buffer;
/** Few large reads that bring all of `wanted` (any order, repeats allowed). */
export declare function planReads(
  frames: FrameTable,
  wanted: Iterable<number>,
  options?: ReadPlanOptions,
): FrameRead[];
/** The distinct frames that hold these pages, in order of first need. */
export declare function framesOf(table: ExtentTable, page: number, pageCount: number): number[];
