// Owns reading verified frames through tiers: ranged read → verify → decompress; damaged ones once more from the next tier.
// Refuses to own caching and order (pagefs). Invariant: not one unverified byte leaves it; a frame that no tier had whole
// is quarantined: it is reported once and refused from then on without another read.
import { ThawError } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';
import { type BlobStore, type ByteRange, type RequestOptions, StoreError } from '../store/blob-store.ts';
import type { Manifest } from './manifest.ts';
import { type FrameRead, openFrame } from './segment.ts';
import { segmentKey } from './store-keys.ts';

/** Where segment bytes come from: a local copy, the store. */
export interface FrameTier {
  readonly name: string;
  /** @returns undefined when this tier does not have the segment. */
  read(sha256: string, range: ByteRange, options: RequestOptions): Promise<Buffer | undefined>;
}

export interface OpenedFrame {
  frame: number;
  bytes: Buffer;
  /** Name of the tier it came from. */
  tier: string;
}

export interface FrameReaderOptions {
  manifest: Manifest;
  /** Nearest first. */
  tiers: readonly FrameTier[];
  /** No tier had it whole. */
  onDamaged?: (frame: number, error: ThawError) => void;
}

export const storeTier = (store: BlobStore, name = 'store'): FrameTier => ({
  name,
  read: async (sha256, range, options) => {
    try {
      return await store.get(segmentKey(sha256), { ...options, range });
    } catch (error) {
      if (error instanceof StoreError && error.failure === 'absent') return undefined;
      throw error;
    }
  },
});

export class FrameReader {
  readonly #manifest: Manifest;
  readonly #tiers: readonly FrameTier[];
  readonly #onDamaged: (frame: number, error: ThawError) => void;
  readonly #quarantined = new Map<number, ThawError>();

  constructor({ manifest, tiers, onDamaged = () => {} }: FrameReaderOptions) {
    this.#manifest = manifest;
    this.#tiers = tiers;
    this.#onDamaged = onDamaged;
  }

  get quarantined(): number[] {
    return [...this.#quarantined.keys()];
  }

  async readFrame(frame: number, options: RequestOptions = {}): Promise<Buffer> {
    const [opened] = await this.read(this.#planOf(frame), options);
    return opened!.bytes;
  }

  /**
   * All frames of `plan`, in its order, or none. @throws ThawError `snapshot-damaged` when a frame is damaged in every
   * tier; `store-unavailable` | `deadline-exceeded` when a tier that might have it did not answer.
   */
  async read(plan: FrameRead, options: RequestOptions = {}): Promise<OpenedFrame[]> {
    for (const frame of plan.frames) {
      const known = this.#quarantined.get(frame);
      if (known) throw known;
    }
    const opened = new Map<number, OpenedFrame>();
    const failures: ThawError[] = [];
    const damaged = new Set<number>();
    for (const tier of this.#tiers) {
      const missing = plan.frames.filter((frame) => !opened.has(frame));
      if (missing.length === 0) break;
      const one = missing.length === 1 ? missing[0] : undefined;
      const part = one === undefined || plan.frames.length === 1 ? plan : this.#planOf(one);
      if (failures.length > 0) metrics.fallbacks.inc({ kind: 'frame-refetch' });
      const failed = await this.#readFrom(tier, part, missing, opened, options);
      for (const frame of failed.damaged) damaged.add(frame);
      failures.push(...failed.failures);
    }
    const frames = plan.frames.map((frame) => opened.get(frame));
    if (frames.every((frame) => frame !== undefined)) return frames;
    if (plan.frames.length === 1 || failures.length === 0)
      for (const frame of plan.frames) if (!opened.has(frame)) damaged.add(frame);
    throw this.#verdict(plan, damaged, failures);
  }

  /** @returns what went wrong; what went well is in `opened`. */
  async #readFrom(
    tier: FrameTier,
    plan: FrameRead,
    missing: readonly number[],
    opened: Map<number, OpenedFrame>,
    options: RequestOptions,
  ): Promise<{ failures: ThawError[]; damaged: number[] }> {
    const failures: ThawError[] = [];
    const damaged: number[] = [];
    try {
      const { sha256 } = this.#manifest.segments[plan.segment]!;
      const bytes = await tier.read(sha256, plan, options);
      // Not having it is no failure of a cache; the last tier's `undefined` ends in `#verdict`.
      if (!bytes) return { failures, damaged };
      for (const frame of missing) {
        try {
          opened.set(frame, { frame, bytes: this.#open(plan, frame, bytes), tier: tier.name });
        } catch (error) {
          failures.push(asThawError(error));
          damaged.push(frame);
        }
      }
    } catch (error) {
      failures.push(asThawError(error));
    }
    return { failures, damaged };
  }

  #open(plan: FrameRead, frame: number, bytes: Buffer): Buffer {
    const { frames } = this.#manifest;
    const start = frames.offsetBytes[frame]! - plan.offsetBytes;
    return openFrame(frames, frame, bytes.subarray(start, start + frames.storedBytes[frame]!));
  }

  /** What could be had later is not damage: while any tier did not answer, nothing is quarantined. */
  #verdict(plan: FrameRead, damaged: ReadonlySet<number>, failures: readonly ThawError[]): ThawError {
    const passing = failures.find(({ code }) => code !== 'snapshot-damaged');
    if (passing) return passing;
    const { sha256 } = this.#manifest.segments[plan.segment]!;
    const error = failures[0] ?? new ThawError('snapshot-damaged', `segment ${sha256} is missing`);
    for (const frame of damaged) {
      this.#quarantined.set(frame, error);
      this.#onDamaged(frame, error);
    }
    return error;
  }

  #planOf(frame: number): FrameRead {
    const { segment, offsetBytes, storedBytes } = this.#manifest.frames;
    if (segment[frame] === undefined)
      throw new ThawError('snapshot-damaged', `frame ${frame} is not in the manifest`);
    return {
      segment: segment[frame],
      offsetBytes: offsetBytes[frame]!,
      sizeBytes: storedBytes[frame]!,
      frames: [frame],
    };
  }
}

const asThawError = (error: unknown): ThawError =>
  error instanceof ThawError ? error : new ThawError('internal', (error as Error).message, { cause: error });
