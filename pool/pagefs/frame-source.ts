// Owns getting verified frames for page files: memory, then the snapshot's reader; each frame read once however many ask.
// Refuses to own tiers and verification (pool/snapshot/frame-reader.ts) and which bytes are wanted (page-source.ts).
// Invariant: memory is bounded; a damaged frame is quarantined, never read again and never served.
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import type { FrameRead, FrameTable } from '../snapshot/segment.ts';
import type { RequestOptions } from '../store/blob-store.ts';
import type { FetchGate } from './fetch-gate.ts';
import type { FrameCache } from './frame-cache.ts';

/** Where a frame came from: this process's memory, or a tier by its name. */
export type FrameOrigin = string;

/** What a frame reader gives. */
export interface FrameReading {
  /** Verified, or rejected as a whole. @throws ThawError `snapshot-damaged` | `store-unavailable` | `deadline-exceeded`. */
  read(plan: FrameRead, options?: RequestOptions): Promise<{ frame: number; bytes: Buffer; tier: string }[]>;
}

/** What all page files of a process share. Keys are frame digests, so siblings share what they have in common. */
export interface FrameHoldings {
  cache: FrameCache;
  gate: FetchGate;
  inFlight: Map<string, Promise<FetchedFrame>>;
  /** Digest → why. */
  quarantined: Map<string, string>;
}

export interface FetchedFrame {
  bytes: Buffer;
  origin: FrameOrigin;
}

export interface RunConsumer {
  /** Asked when the run's turn has come. */
  wanted(): boolean;
  /** Gets each frame, in order. */
  onFrame(frame: number, fetched: FetchedFrame): Promise<void>;
  /** Gets each frame that could not be had. */
  onFailure(frame: number, error: unknown): void;
}

export interface FrameSourceOptions {
  frames: FrameTable;
  reader: FrameReading;
  holdings: FrameHoldings;
  onQuarantined: (frame: number, detail: string) => void;
  /** Gets each frame that came along with one that was asked for. */
  onNeighbour?: (frame: number, bytes: Buffer) => void;
  /** For one read with all its retries and tiers. */
  readTimeoutMs: number;
  /** Stored bytes that one fault fetches along with its own frame. */
  aroundBytes: number;
}

export class FrameSource {
  readonly #options: FrameSourceOptions;

  constructor(options: FrameSourceOptions) {
    this.#options = options;
  }

  /** Without waiting. */
  cached(frame: number): Buffer | undefined {
    return this.#options.holdings.cache.get(this.#keyOf(frame));
  }

  holds(frame: number): boolean {
    return this.#options.holdings.cache.has(this.#keyOf(frame));
  }

  /** @throws ThawError as the reader does. */
  async fetch(frame: number): Promise<FetchedFrame> {
    const { cache, inFlight, gate } = this.#options.holdings;
    const key = this.#keyOf(frame);
    const bytes = cache.get(key);
    if (bytes) return { bytes, origin: 'memory' };
    const underWay = inFlight.get(key);
    if (underWay) return underWay;
    const fetched = gate.run('fault', () => this.#readAround(frame));
    return this.#track(key, fetched);
  }

  /** Ahead of need. What is here or on its way is not read again; a fault that meets a frame of the run joins the run. */
  async fetchRun(run: FrameRead, consumer: RunConsumer): Promise<void> {
    await this.#options.holdings.gate.run('ahead', async () => {
      if (!consumer.wanted()) return;
      const arriving = this.#startRun(run);
      for (const frame of run.frames)
        try {
          await consumer.onFrame(frame, await (arriving.get(frame) ?? this.fetch(frame)));
        } catch (error) {
          consumer.onFailure(frame, error);
        }
    });
  }

  /** Registers as on its way what the run will bring, so that faults join it. */
  #startRun(run: FrameRead): Map<number, Promise<FetchedFrame>> {
    const { cache, inFlight } = this.#options.holdings;
    const missing = run.frames.filter((frame) => {
      const key = this.#keyOf(frame);
      return !cache.has(key) && !inFlight.has(key);
    });
    const arriving = new Map<number, Promise<FetchedFrame>>();
    if (missing.length === 0) return arriving;
    const read = this.#read(narrowed(run, missing, this.#options.frames));
    for (const frame of missing) {
      const fetched = this.#track(this.#keyOf(frame), this.#outOf(read, frame));
      fetched.catch(() => {});
      arriving.set(frame, fetched);
    }
    return arriving;
  }

  /** One damaged frame must not take its neighbours along: each is then read by itself. A store that is down is down. */
  async #outOf(read: Promise<Map<number, FetchedFrame>>, frame: number): Promise<FetchedFrame> {
    try {
      const fetched = (await read).get(frame);
      if (fetched) return fetched;
    } catch (error) {
      if (!isDamage(error)) throw error;
    }
    return this.#readAlone(frame);
  }

  /** A frame that a reader waits for, and what lies around it: the first byte costs more than the rest together. */
  async #readAround(frame: number): Promise<FetchedFrame> {
    const { holdings, frames, onNeighbour, aroundBytes } = this.#options;
    const run = around(frames, frame, aroundBytes, (other) => {
      const key = this.#keyOf(other);
      return !holdings.cache.has(key) && !holdings.inFlight.has(key) && !holdings.quarantined.has(key);
    });
    if (run.frames.length === 1) return this.#readAlone(frame);
    const read = this.#read(run);
    for (const neighbour of run.frames) {
      if (neighbour === frame) continue;
      const fetched = this.#track(this.#keyOf(neighbour), this.#outOf(read, neighbour));
      fetched.then(({ bytes }) => onNeighbour?.(neighbour, bytes)).catch(() => {});
    }
    return this.#outOf(read, frame);
  }

  async #readAlone(frame: number): Promise<FetchedFrame> {
    const { quarantined } = this.#options.holdings;
    const key = this.#keyOf(frame);
    const reason = quarantined.get(key);
    if (reason !== undefined) throw new ThawError('snapshot-damaged', reason);
    try {
      const fetched = (await this.#read(soleRead(this.#options.frames, frame))).get(frame);
      if (!fetched) throw new ThawError('internal', `the frame reader left out frame ${frame}`);
      return fetched;
    } catch (error) {
      if (isDamage(error)) {
        quarantined.set(key, `frame ${frame} is quarantined: ${error.message}`);
        this.#options.onQuarantined(frame, error.message);
      }
      throw error;
    }
  }

  async #read(plan: FrameRead): Promise<Map<number, FetchedFrame>> {
    const { reader, holdings, readTimeoutMs } = this.#options;
    const signal = AbortSignal.timeout(readTimeoutMs);
    const opened = await withDeadline(
      `reading frame ${plan.frames[0]}`,
      readTimeoutMs,
      reader.read(plan, { signal, timeoutMs: readTimeoutMs }),
    );
    for (const { frame, bytes } of opened) holdings.cache.set(this.#keyOf(frame), bytes);
    return new Map(opened.map(({ frame, bytes, tier }) => [frame, { bytes, origin: tier }]));
  }

  #track(key: string, fetched: Promise<FetchedFrame>): Promise<FetchedFrame> {
    const { inFlight } = this.#options.holdings;
    inFlight.set(key, fetched);
    const landed = () => void inFlight.delete(key);
    fetched.then(landed, landed);
    return fetched;
  }

  #keyOf(frame: number): string {
    const { sha256 } = this.#options.frames;
    return Buffer.from(sha256.buffer, sha256.byteOffset + frame * 32, 32).toString('latin1');
  }
}

const isDamage = (error: unknown): error is ThawError =>
  error instanceof ThawError && error.code === 'snapshot-damaged';

/** The read that brings one frame alone. */
export const soleRead = (frames: FrameTable, frame: number): FrameRead => ({
  segment: frames.segment[frame]!,
  offsetBytes: frames.offsetBytes[frame]!,
  sizeBytes: frames.storedBytes[frame]!,
  frames: [frame],
});

/** The part of a read that brings only these of its frames. */
function narrowed(run: FrameRead, wanted: number[], frames: FrameTable): FrameRead {
  if (wanted.length === run.frames.length) return run;
  const offsetBytes = frames.offsetBytes[wanted[0]!]!;
  const last = wanted.at(-1)!;
  const sizeBytes = frames.offsetBytes[last]! + frames.storedBytes[last]! - offsetBytes;
  return { segment: run.segment, offsetBytes, sizeBytes, frames: wanted };
}

/** A read of the frame with its neighbours in the segment, as far as they touch each other and are wanted. */
function around(
  frames: FrameTable,
  frame: number,
  maxBytes: number,
  wanted: (frame: number) => boolean,
): FrameRead {
  const run = soleRead(frames, frame);
  const endOf = (index: number) => frames.offsetBytes[index]! + frames.storedBytes[index]!;
  const takes = (index: number) =>
    frames.segment[index] === run.segment &&
    run.sizeBytes + frames.storedBytes[index]! <= maxBytes &&
    wanted(index);
  // What follows is likelier needed than what stands before.
  for (let next = frame + 1; takes(next) && frames.offsetBytes[next] === endOf(next - 1); next++) {
    run.frames.push(next);
    run.sizeBytes += frames.storedBytes[next]!;
  }
  for (let before = frame - 1; takes(before) && endOf(before) === run.offsetBytes; before--) {
    run.frames.unshift(before);
    run.sizeBytes += frames.storedBytes[before]!;
    run.offsetBytes = frames.offsetBytes[before]!;
  }
  return run;
}
