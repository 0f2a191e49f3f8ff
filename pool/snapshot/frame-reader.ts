// Owns reading verified frames through tiers: ranged read → verify → decompress; damaged ones once more from the next tier.
// Refuses to own caching and order (pagefs). Invariant: not one unverified byte leaves it.
import type { ByteRange, RequestOptions } from '../store/blob-store.ts';
import type { ImageName, Manifest } from './manifest.ts';
import type { FrameRead } from './segment.ts';

/** Where segment bytes come from: a local copy, the store. */
export interface FrameTier {
  readonly name: string;
  /** @returns undefined when this tier does not have the segment. */
  read(sha256: string, range: ByteRange, options: RequestOptions): Promise<Buffer | undefined>;
}

export interface OpenedFrame {
  frame: number;
  bytes: Buffer;
}

export declare class FrameReader {
  constructor(options: {
    manifest: Manifest;
    tiers: readonly FrameTier[];
    /** A frame that no tier had whole: the snapshot is marked and not restored again until verified. */
    onDamaged?: (frame: number, tier: string, error: Error) => void;
  });
  /** @throws ThawError `snapshot-damaged` | `store-unavailable` | `deadline-exceeded`. */
  read(plan: FrameRead, options?: RequestOptions): Promise<OpenedFrame[]>;
  readFrame(frame: number, options?: RequestOptions): Promise<Buffer>;
  /** Writes a whole image to an absent sparse file, a few large reads at a time; fsynced when it returns. */
  materialise(image: ImageName, path: string, options?: RequestOptions): Promise<void>;
}
