// Owns what is known of one served page file while it is read: counts, first touches, and failures made known.
// Refuses to own its bytes (page-source.ts). Invariant: a read that fails is reported with its reason before the kernel
// hears of it, so that whoever dies of it can be told why.
import { ThawError } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';
import { pageBytes, pagesIn } from '../snapshot/extents.ts';
import { FirstTouches, type Recording } from '../snapshot/working-set.ts';
import type { PageFile } from './file-tree.ts';
import type { FuseAnswer } from './fuse-session.ts';
import type { PageSource, RangeRead } from './page-source.ts';
import { Speculation } from './speculation.ts';

export interface ServedFileOptions {
  source: PageSource;
  /** First touches are recorded, page by page. */
  record: boolean;
  /** A read that is refused for the sake of a recording: what it asks for is probably needed soon all the same. */
  onGuess: (offsetBytes: number, sizeBytes: number) => void;
  onReadFailed: (error: ThawError) => void;
  onWriteRefused: (pid: number) => void;
}

/** A vCPU that meets an error tries again at once, until its VMM is ended: one report in this time is enough. */
const reportEveryMs = 100;

export class ServedFile implements PageFile {
  readonly sizeBytes: number;
  readonly source: PageSource;
  readonly #options: ServedFileOptions;
  readonly #touches: FirstTouches | undefined;
  readonly #speculation: Speculation;
  #misses: FirstTouches | undefined;
  #reads = 0;
  #readBytes = 0;
  #reportedMs = Number.NEGATIVE_INFINITY;

  constructor(options: ServedFileOptions) {
    this.#options = options;
    this.source = options.source;
    this.sizeBytes = options.source.sizeBytes;
    this.#touches = options.record ? new FirstTouches(pagesIn(this.sizeBytes)) : undefined;
    this.#speculation = new Speculation(this.sizeBytes);
  }

  get counts(): { reads: number; readBytes: number } {
    return { reads: this.#reads, readBytes: this.#readBytes };
  }

  /** From now on what is not of the working set is fetched only when it is needed, and that is recorded. */
  knowsWorkingSet(): void {
    this.#misses ??= new FirstTouches(pagesIn(this.sizeBytes));
  }

  /** First touches; where a working set is known, only of pages that had not come with it by then. */
  recording(): Recording | undefined {
    return (this.#touches ?? this.#misses)?.recording();
  }

  readRange(offsetBytes: number, sizeBytes: number): FuseAnswer | Promise<FuseAnswer> {
    if (this.#isUnwelcome(offsetBytes, sizeBytes)) return 'EAGAIN';
    this.#reads++;
    this.#readBytes += sizeBytes;
    this.#touches?.touch(offsetBytes, sizeBytes);
    const startMs = performance.now();
    const read = this.source.readRange(offsetBytes, sizeBytes);
    if (!(read instanceof Promise)) return this.#served(read, startMs);
    this.#misses?.touch(offsetBytes, sizeBytes);
    return read.then(
      (done) => this.#served(done, startMs),
      (error) => {
        metrics.pagefsRead.observe({ source: 'failed' }, (performance.now() - startMs) / 1000);
        this.#report(error);
        throw error;
      },
    );
  }

  /**
   * For one page of a mapping that its VMM advised for huge pages (QEMU does) the kernel reads 2 to 4 MiB around. When
   * such a read fails it asks for the one page: so recordings are exact, and a restore whose working set is here does not
   * fetch a hundred times what else it needs. Without a working set the guess is the best there is.
   */
  #isUnwelcome(offsetBytes: number, sizeBytes: number): boolean {
    const { record } = this.#options;
    if (sizeBytes <= pageBytes || !(record || this.#misses)) return false;
    if (!record && this.source.isAtHand(offsetBytes, sizeBytes)) return false;
    if (!this.#speculation.refuses(offsetBytes, sizeBytes)) return false;
    if (record) this.#options.onGuess(offsetBytes, sizeBytes);
    return true;
  }

  onWriteRefused(pid: number): void {
    this.#options.onWriteRefused(pid);
  }

  #served({ pieces, origin }: RangeRead, startMs: number): readonly Buffer[] {
    metrics.pagefsRead.observe({ source: origin }, (performance.now() - startMs) / 1000);
    return pieces;
  }

  #report(error: unknown): void {
    const nowMs = performance.now();
    if (nowMs - this.#reportedMs < reportEveryMs) return;
    this.#reportedMs = nowMs;
    this.#options.onReadFailed(
      error instanceof ThawError
        ? error
        : new ThawError('internal', (error as Error).message, { cause: error }),
    );
  }
}
