// Owns checking a stored snapshot from end to end: every frame fetched, verified and decompressed, none kept.
// Invariant: it changes nothing; what it calls sound could be restored now.
import { ThawError } from '../../shared/errors.ts';
import type { RequestOptions } from '../store/blob-store.ts';
import { FrameReader, type FrameTier } from './frame-reader.ts';
import type { Manifest } from './manifest.ts';
import { planReads } from './segment.ts';

export interface Verification {
  frames: number;
  /** Stored bytes that were read. */
  bytes: number;
  /** Frames that are damaged or missing, with the reason. */
  damaged: { frame: number; reason: string }[];
}

/** @throws ThawError `store-unavailable` | `deadline-exceeded`: then nothing is known. */
export async function verifySnapshot(
  manifest: Manifest,
  tier: FrameTier,
  options: RequestOptions = {},
): Promise<Verification> {
  const { frames } = manifest;
  const reader = new FrameReader({ manifest, tiers: [tier] });
  const result: Verification = { frames: frames.segment.length, bytes: 0, damaged: [] };
  const sound = async (read: () => Promise<unknown>) => {
    try {
      await read();
      return undefined;
    } catch (error) {
      if (error instanceof ThawError && error.code === 'snapshot-damaged') return error;
      throw error;
    }
  };
  for (const plan of planReads(frames, frames.segment.keys())) {
    result.bytes += plan.sizeBytes;
    if (!(await sound(() => reader.read(plan, options)))) continue;
    // One by one, to tell which.
    for (const frame of plan.frames) {
      const error = await sound(() => reader.readFrame(frame, options));
      if (error) result.damaged.push({ frame, reason: error.message });
    }
  }
  return result;
}
