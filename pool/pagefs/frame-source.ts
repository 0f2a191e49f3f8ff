// Owns getting a verified frame: memory, then the tiers in order; each frame fetched once however many ask.
// Refuses to own which bytes of it are wanted (page-source.ts) and the format (`decode` is handed in).
// Invariant: no byte leaves here unverified; a frame that is corrupt in every tier is quarantined and never served.
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import { FetchGate } from './fetch-gate.ts';
import { FrameCache } from './frame-cache.ts';
import type { FrameRef } from './page-layout.ts';

/** A place that holds segments. */
export interface FrameTier {
  readonly origin: 'local' | 'store';
  /** @returns undefined when this tier does not have the segment. */
  read(segment: string, offsetBytes: number, sizeBytes: number, signal: AbortSignal): Promise<Buffer | undefined>;
}

export type FrameOrigin = 'memory' | FrameTier['origin'];

/** Decompresses and verifies. @throws when the bytes are not those of the frame. */
export type FrameDecoder = (frame: FrameRef, stored: Buffer) => Promise<Buffer>;

export interface VerifyFailure {
  /** `refused`: this copy is not used; another is tried. `quarantined`: no copy is good, the frame is never served. */
  kind: 'refused' | 'quarantined';
  frame: FrameRef;
  origin: FrameTier['origin'];
  detail: string;
}

export interface FrameSourceOptions {
  /** Nearest first. */
  tiers: readonly FrameTier[];
  decode: FrameDecoder;
  onVerifyFailure: (failure: VerifyFailure) => void;
  cacheBytes: number;
  maxConcurrentReads: number;
  /** For one read of one tier, which has its own retries. */
  readTimeoutMs: number;
}

export interface FetchedFrame {
  bytes: Buffer;
  origin: FrameOrigin;
}

interface Failure {
  tier: FrameTier;
  /** The bytes came and were not the frame's. */
  corrupt: boolean;
  detail: string;
}

export const keyOf = (frame: FrameRef): string => `${frame.segment}:${frame.offsetBytes}`;

export class FrameSource {
  readonly #options: FrameSourceOptions;
  readonly #cache: FrameCache;
  readonly #gate: FetchGate;
  readonly #inFlight = new Map<string, Promise<FetchedFrame>>();
  readonly #quarantined = new Map<string, string>();

  constructor(options: FrameSourceOptions) {
    this.#options = options;
    this.#cache = new FrameCache(options.cacheBytes);
    this.#gate = new FetchGate(options.maxConcurrentReads);
  }

  get stats(): { cacheBytes: number; inFlight: number; waiting: number; quarantined: number } {
    return {
      cacheBytes: this.#cache.sizeBytes,
      inFlight: this.#inFlight.size,
      waiting: this.#gate.waiting,
      quarantined: this.#quarantined.size,
    };
  }

  /** Without waiting. */
  cached(frame: FrameRef): Buffer | undefined {
    return this.#cache.get(keyOf(frame));
  }

  /** @throws ThawError `page-unavailable` | `page-corrupt`. */
  async fetch(frame: FrameRef): Promise<FetchedFrame> {
    const bytes = this.cached(frame);
    if (bytes) return { bytes, origin: 'memory' };
    const underWay = this.#inFlight.get(keyOf(frame));
    if (underWay) return underWay;
    return this.#track(
      frame,
      this.#gate.run('fault', () => this.#throughTiers(frame)),
    );
  }

  /**
   * Ahead of need: frames of one segment, ascending, by one read of the range that holds them. Those that are here or
   * on their way are not read again. A fault that meets a frame of the run waits for the run instead of reading it.
   * @param onFrame gets each frame as it has been verified. @param onFailure gets each that has not.
   */
  async fetchRun(
    frames: readonly FrameRef[],
    onFrame: (frame: FrameRef, fetched: FetchedFrame) => Promise<void> | void,
    onFailure: (frame: FrameRef, error: unknown) => void,
  ): Promise<void> {
    await this.#gate.run('ahead', async () => {
      const missing = frames.filter((frame) => !this.#cache.has(keyOf(frame)) && !this.#inFlight.has(keyOf(frame)));
      const arriving = missing.length > 0 ? this.#startRun(missing) : undefined;
      for (const frame of frames)
        try {
          await onFrame(frame, await (arriving?.get(frame) ?? this.fetch(frame)));
        } catch (error) {
          onFailure(frame, error);
        }
    });
  }

  /** Registers every frame as on its way. Decoded one after the other, so that a run takes one thread and not all. */
  #startRun(frames: readonly FrameRef[]): Map<FrameRef, Promise<FetchedFrame>> {
    const arriving = new Map<FrameRef, Promise<FetchedFrame>>();
    const read = this.#readRange(frames);
    let previous: Promise<unknown> = read;
    for (const frame of frames) {
      const decoded = Promise.allSettled([previous]).then(async () => {
        const { bytes, offsetBytes, origin } = await read;
        const at = frame.offsetBytes - offsetBytes;
        return this.#accept(frame, bytes.subarray(at, at + frame.storedBytes), origin);
      });
      previous = decoded;
      // When the common read failed or this frame of it is corrupt: by itself, with all tiers to choose from.
      const fetched = this.#track(
        frame,
        decoded.catch(() => this.#throughTiers(frame)),
      );
      fetched.catch(() => {});
      arriving.set(frame, fetched);
    }
    return arriving;
  }

  async #readRange(
    frames: readonly FrameRef[],
  ): Promise<{ bytes: Buffer; offsetBytes: number; origin: FrameTier['origin'] }> {
    const [first, last] = [frames[0]!, frames.at(-1)!];
    const sizeBytes = last.offsetBytes + last.storedBytes - first.offsetBytes;
    for (const tier of this.#options.tiers) {
      const bytes = await this.#readTier(tier, first.segment, first.offsetBytes, sizeBytes).catch(() => undefined);
      if (bytes?.length === sizeBytes) return { bytes, offsetBytes: first.offsetBytes, origin: tier.origin };
    }
    throw new ThawError('page-unavailable', `segment ${first.segment} could not be read`);
  }

  #track(frame: FrameRef, fetched: Promise<FetchedFrame>): Promise<FetchedFrame> {
    const key = keyOf(frame);
    this.#inFlight.set(key, fetched);
    const landed = () => void this.#inFlight.delete(key);
    fetched.then(landed, landed);
    return fetched;
  }

  async #throughTiers(frame: FrameRef): Promise<FetchedFrame> {
    const quarantined = this.#quarantined.get(keyOf(frame));
    if (quarantined !== undefined) throw new ThawError('page-corrupt', quarantined);
    const { tiers } = this.#options;
    let failure: Failure | undefined;
    for (const tier of tiers) {
      const outcome = await this.#attempt(tier, frame);
      if (outcome && 'bytes' in outcome) return outcome;
      failure = outcome ?? failure;
    }
    // A store that cannot be reached has retried by itself; bytes that are wrong are worth a second look.
    if (failure?.corrupt && failure.tier === tiers.at(-1)) {
      const outcome = await this.#attempt(failure.tier, frame);
      if (outcome && 'bytes' in outcome) return outcome;
      if (outcome?.corrupt) this.#quarantine(frame, outcome);
    }
    throw failureOf(frame, failure);
  }

  async #attempt(tier: FrameTier, frame: FrameRef): Promise<FetchedFrame | Failure | undefined> {
    let stored: Buffer | undefined;
    try {
      stored = await this.#readTier(tier, frame.segment, frame.offsetBytes, frame.storedBytes);
      if (stored === undefined) return undefined;
    } catch (error) {
      return { tier, corrupt: false, detail: (error as Error).message };
    }
    try {
      return await this.#accept(frame, stored, tier.origin);
    } catch (error) {
      return { tier, corrupt: true, detail: (error as Error).message };
    }
  }

  #readTier(tier: FrameTier, segment: string, offsetBytes: number, sizeBytes: number): Promise<Buffer | undefined> {
    const { readTimeoutMs } = this.#options;
    const read = tier.read(segment, offsetBytes, sizeBytes, AbortSignal.timeout(readTimeoutMs));
    return withDeadline(`reading segment ${segment}`, readTimeoutMs, read);
  }

  async #accept(frame: FrameRef, stored: Buffer, origin: FrameTier['origin']): Promise<FetchedFrame> {
    try {
      checkLength('stored', stored, frame.storedBytes);
      const bytes = await this.#options.decode(frame, stored);
      checkLength('decoded', bytes, frame.rawBytes);
      this.#cache.set(keyOf(frame), bytes);
      return { bytes, origin };
    } catch (error) {
      const detail = (error as Error).message;
      this.#options.onVerifyFailure({ kind: 'refused', frame, origin, detail });
      throw error;
    }
  }

  #quarantine(frame: FrameRef, { tier, detail }: Failure): void {
    this.#quarantined.set(keyOf(frame), `frame ${keyOf(frame)} is quarantined: ${detail}`);
    this.#options.onVerifyFailure({ kind: 'quarantined', frame, origin: tier.origin, detail });
  }
}

function checkLength(what: string, bytes: Buffer, expected: number): void {
  if (bytes.length !== expected)
    throw new ThawError('page-corrupt', `${bytes.length} bytes ${what} instead of ${expected}`);
}

const failureOf = (frame: FrameRef, failure: Failure | undefined): ThawError =>
  new ThawError(
    failure?.corrupt ? 'page-corrupt' : 'page-unavailable',
    `frame ${keyOf(frame)}: ${failure?.detail ?? 'no tier has its segment'}`,
  );
