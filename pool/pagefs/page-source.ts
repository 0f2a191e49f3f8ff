// Owns the bytes of one page file: which frames and zeros make up a range, and keeping arrived frames in a plain file.
// Refuses to own FUSE and getting frames (frame-source.ts). Invariant: a range is whole and verified or an error; zeros
// stand only where the manifest's extents say so.
import type { FileHandle } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { pageBytes, piecesOf } from '../snapshot/extents.ts';
import type { Image } from '../snapshot/manifest.ts';
import type { FrameRead } from '../snapshot/segment.ts';
import type { TouchedRun } from '../snapshot/working-set.ts';
import type { FrameOrigin, FrameSource } from './frame-source.ts';
import { GrowingFile, readFully } from './growing-file.ts';
import { ImagePlaces, type Place } from './image-places.ts';

export interface RangeRead {
  pieces: readonly Buffer[];
  /** The slowest part's: `zero`, `memory`, `file` (a plain file here) or a tier's name. */
  origin: FrameOrigin;
}

export interface PageSource {
  readonly sizeBytes: number;
  /** The range lies inside the file. @throws ThawError as the frame reader does. */
  readRange(offsetBytes: number, sizeBytes: number): RangeRead | Promise<RangeRead>;
  /** Whether the range can be read without asking a store. */
  isAtHand(offsetBytes: number, sizeBytes: number): boolean;
  close(): Promise<void>;
}

/** A page file that is whole already: served so that first touches can be recorded. */
export class PlainPageSource implements PageSource {
  readonly sizeBytes: number;
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #isFar: boolean;
  #reads = 0;

  /** @param isFar now and then a read takes as long as one from a store: a guest whose clock runs on does other things. */
  constructor(file: FileHandle, path: string, sizeBytes: number, isFar = false) {
    this.#file = file;
    this.#path = path;
    this.sizeBytes = sizeBytes;
    this.#isFar = isFar;
  }

  async readRange(offsetBytes: number, sizeBytes: number): Promise<RangeRead> {
    if (this.#isFar && ++this.#reads % nearReads === 0) await delay(farReadMs);
    return { pieces: [await readFully(this.#file, offsetBytes, sizeBytes, this.#path)], origin: 'file' };
  }

  isAtHand(): boolean {
    return true;
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

export interface FramePageSourceOptions {
  image: Image;
  /** What it reads besides what it was asked for it hands to `onNeighbour`. */
  openFrames: (onNeighbour: (frame: number, bytes: Buffer) => void) => FrameSource;
  /** Where the plain file comes to lie when all of it is here; nowhere when absent. */
  keepPath?: string;
  /** Keeping has ended: the file is whole, or an error (a full disk) after which pages are only kept in memory. */
  onKept: (error?: Error) => void;
  /** A frame has come because a reader needed a part of it. */
  onFetched?: OnFetched;
}

export interface FetchOutcome {
  failed: number;
  error?: unknown;
}

/** Puts bytes of the page file where its readers find them without asking. */
export type Push = (places: readonly Place[]) => Promise<void>;

/** For whoever asked for a part of a frame the rest of it is the likeliest next. */
export type OnFetched = (places: readonly Place[]) => void;

/** Of a page file that is served as if it were far: thirty waits a restore. */
const nearReads = 200;
const farReadMs = 100;
const maxUnwrittenBytes = 32 * 1024 * 1024;
const zeros = Buffer.alloc(1024 * 1024);

export class FramePageSource implements PageSource {
  readonly sizeBytes: number;
  readonly #options: FramePageSourceOptions;
  readonly #frames: FrameSource;
  readonly #places: ImagePlaces;
  #kept: GrowingFile | undefined;
  #keepFailure: Error | undefined;
  readonly #writing = new Map<number, Promise<void>>();
  readonly #announced = new Set<number>();
  #unwrittenBytes = 0;
  #closed = false;

  private constructor(options: FramePageSourceOptions, places: ImagePlaces, kept: GrowingFile | undefined) {
    this.#options = options;
    this.#frames = options.openFrames((frame, bytes) => this.#arrived(frame, bytes));
    this.sizeBytes = options.image.sizeBytes;
    this.#places = places;
    this.#kept = kept;
  }

  static async open(options: FramePageSourceOptions): Promise<FramePageSource> {
    const places = new ImagePlaces(options.image);
    const { keepPath } = options;
    const kept = keepPath === undefined ? undefined : await GrowingFile.create(keepPath, places);
    const source = new FramePageSource(options, places, kept);
    if (kept?.missingFrames === 0) await source.#seal(kept);
    return source;
  }

  /** Why there will be no plain file; undefined while there may be. */
  get keepFailure(): Error | undefined {
    return this.#keepFailure;
  }

  /** Frames that the plain file still lacks; all that the image needs when none is kept. */
  missingFrames(): number[] {
    return this.#kept?.missing() ?? this.#places.frames();
  }

  readRange(offsetBytes: number, sizeBytes: number): RangeRead | Promise<RangeRead> {
    const parts = this.#partsOf(offsetBytes, sizeBytes);
    const ready = parts.map((part) => this.#atHand(part));
    if (ready.every((part) => part !== undefined)) return joined(ready);
    const kept = this.#kept;
    if (kept && parts.every(({ frame }) => frame < 0 || kept.has(frame)))
      return kept.readRange(offsetBytes, sizeBytes).then((bytes) => ({ pieces: [bytes], origin: 'file' }));
    return Promise.all(parts.map((part, index) => ready[index] ?? this.#obtain(part))).then(joined);
  }

  isAtHand(offsetBytes: number, sizeBytes: number): boolean {
    return this.#partsOf(offsetBytes, sizeBytes).every(
      ({ frame }) => frame < 0 || this.#frames.holds(frame) || this.#kept?.has(frame),
    );
  }

  /** Fetches by these reads what is not here, and keeps it. @returns how many frames could not be had, and why the first could not. */
  keepAhead(runs: readonly FrameRead[]): Promise<FetchOutcome> {
    return this.#fetch(runs, (frame, bytes) => this.#keep(frame, bytes));
  }

  /** As `keepAhead`, only into memory: while a guest waits for its pages nothing is written for later. */
  async fetchAhead(runs: readonly FrameRead[], push?: Push): Promise<FetchOutcome> {
    return await this.#fetch(runs, async (frame, bytes) => push?.(this.#places.spread(frame, bytes)));
  }

  /** What these runs have of zeros: no fetch brings them, and a page that is asked for makes the kernel guess 4 MiB around. */
  zerosIn(runs: readonly TouchedRun[]): Place[] {
    const places: Place[] = [];
    for (const { page, pageCount } of runs)
      for (const { offsetBytes, sizeBytes, frame } of this.#partsOf(page * pageBytes, pageCount * pageBytes))
        for (let at = 0; frame < 0 && at < sizeBytes; at += zeros.length)
          places.push({ offsetBytes: offsetBytes + at, bytes: zeros.subarray(0, sizeBytes - at) });
    return places;
  }

  async #fetch(
    runs: readonly FrameRead[],
    arrived: (frame: number, bytes: Buffer) => Promise<void>,
  ): Promise<FetchOutcome> {
    const outcome: FetchOutcome = { failed: 0 };
    await Promise.all(
      runs.map((run) =>
        this.#frames.fetchRun(run, {
          wanted: () => !this.#closed,
          onFrame: (frame, { bytes }) => arrived(frame, bytes),
          onFailure: (_, error) => {
            outcome.failed++;
            outcome.error ??= error;
          },
        }),
      ),
    );
    return outcome;
  }

  async close(): Promise<void> {
    this.#closed = true;
    const kept = this.#kept;
    this.#kept = undefined;
    await Promise.allSettled(this.#writing.values());
    await kept?.close();
  }

  #partsOf(offsetBytes: number, sizeBytes: number): Part[] {
    const endBytes = offsetBytes + sizeBytes;
    const firstPage = Math.floor(offsetBytes / pageBytes);
    const pageCount = Math.ceil(endBytes / pageBytes) - firstPage;
    const parts: Part[] = [];
    for (const piece of piecesOf(this.#options.image.extents, firstPage, pageCount)) {
      const startBytes = piece.page * pageBytes;
      const from = Math.max(startBytes, offsetBytes);
      const to = Math.min(startBytes + piece.pageCount * pageBytes, endBytes);
      const frameOffsetBytes = piece.framePage * pageBytes + (from - startBytes);
      parts.push({ offsetBytes: from, sizeBytes: to - from, frame: piece.frame, frameOffsetBytes });
    }
    return parts;
  }

  #atHand(part: Part): RangeRead | undefined {
    if (part.frame < 0) return { pieces: zerosOf(part.sizeBytes), origin: 'zero' };
    const bytes = this.#frames.cached(part.frame);
    return bytes && { pieces: [cut(bytes, part)], origin: 'memory' };
  }

  async #obtain(part: Part): Promise<RangeRead> {
    if (this.#kept?.has(part.frame))
      return { pieces: [await this.#kept.readRange(part.offsetBytes, part.sizeBytes)], origin: 'file' };
    const { bytes, origin } = await this.#frames.fetch(part.frame);
    this.#arrived(part.frame, bytes);
    return { pieces: [cut(bytes, part)], origin };
  }

  /** A verified frame that nobody may have asked for. */
  #arrived(frame: number, bytes: Buffer): void {
    if (this.#unwrittenBytes < maxUnwrittenBytes) void this.#keep(frame, bytes);
    this.#announce(frame, bytes);
  }

  /** Once: who asks for it again has the rest already, or the kernel dropped it. */
  #announce(frame: number, bytes: Buffer): void {
    if (!this.#options.onFetched || this.#announced.has(frame)) return;
    this.#announced.add(frame);
    this.#options.onFetched(this.#places.spread(frame, bytes));
  }

  /** Never rejects: a frame that cannot be kept has been served all the same. */
  async #keep(frame: number, bytes: Buffer): Promise<void> {
    const kept = this.#kept;
    if (!kept || kept.has(frame)) return;
    const underWay = this.#writing.get(frame);
    if (underWay) return underWay;
    const written = this.#write(kept, frame, bytes).finally(() => this.#writing.delete(frame));
    this.#writing.set(frame, written);
    return written;
  }

  async #write(kept: GrowingFile, frame: number, bytes: Buffer): Promise<void> {
    this.#unwrittenBytes += bytes.length;
    try {
      await kept.write(frame, bytes);
      if (kept.missingFrames === 0) await this.#seal(kept);
    } catch (error) {
      await this.#giveUp(kept, error as Error);
    } finally {
      this.#unwrittenBytes -= bytes.length;
    }
  }

  async #seal(kept: GrowingFile): Promise<void> {
    await kept.seal();
    this.#options.onKept();
  }

  async #giveUp(kept: GrowingFile, error: Error): Promise<void> {
    if (this.#kept !== kept) return;
    this.#kept = undefined;
    this.#keepFailure = error;
    this.#options.onKept(error);
    // Reads that are under way hold the file open by themselves until they have ended.
    await kept.close().catch(() => {});
  }
}

interface Part {
  offsetBytes: number;
  sizeBytes: number;
  /** Negative: zero. */
  frame: number;
  frameOffsetBytes: number;
}

const cut = (bytes: Buffer, { frameOffsetBytes, sizeBytes }: Part): Buffer =>
  bytes.subarray(frameOffsetBytes, frameOffsetBytes + sizeBytes);

function zerosOf(sizeBytes: number): Buffer[] {
  const pieces: Buffer[] = [];
  for (let left = sizeBytes; left > 0; left -= zeros.length)
    pieces.push(zeros.subarray(0, Math.min(left, zeros.length)));
  return pieces;
}

const originRank = ['zero', 'memory', 'file', 'local'];
const rankOf = (origin: FrameOrigin): number => {
  const rank = originRank.indexOf(origin);
  return rank < 0 ? originRank.length : rank;
};

function joined(parts: readonly RangeRead[]): RangeRead {
  let origin = 'zero';
  for (const part of parts) if (rankOf(part.origin) > rankOf(origin)) origin = part.origin;
  return { pieces: parts.flatMap((part) => part.pieces), origin };
}
