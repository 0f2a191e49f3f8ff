// Owns what is known of one served page file while it is read: counts, first touches, and failures made known.
// Refuses to own its bytes (page-source.ts). Invariant: a read that fails is reported with its reason before the kernel
// hears of it, so that whoever dies of it can be told why.
import { ThawError } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';
import { FirstTouches, type Recording } from '../snapshot/working-set.ts';
import type { PageFile } from './file-tree.ts';
import type { PageSource, RangeRead } from './page-source.ts';

export interface ServedFileOptions {
  source: PageSource;
  /** Pages of the image, when its first touches are to be recorded. */
  recordPages?: number;
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
  #reads = 0;
  #readBytes = 0;
  #reportedMs = Number.NEGATIVE_INFINITY;

  constructor(options: ServedFileOptions) {
    this.#options = options;
    this.source = options.source;
    this.sizeBytes = options.source.sizeBytes;
    this.#touches = options.recordPages === undefined ? undefined : new FirstTouches(options.recordPages);
  }

  get counts(): { reads: number; readBytes: number } {
    return { reads: this.#reads, readBytes: this.#readBytes };
  }

  recording(): Recording | undefined {
    return this.#touches?.recording();
  }

  readRange(offsetBytes: number, sizeBytes: number): readonly Buffer[] | Promise<readonly Buffer[]> {
    this.#reads++;
    this.#readBytes += sizeBytes;
    this.#touches?.touch(offsetBytes, sizeBytes);
    const startMs = performance.now();
    const read = this.source.readRange(offsetBytes, sizeBytes);
    if (!(read instanceof Promise)) return this.#served(read, startMs);
    return read.then(
      (done) => this.#served(done, startMs),
      (error) => {
        metrics.pagefsRead.observe({ source: 'failed' }, (performance.now() - startMs) / 1000);
        this.#report(error);
        throw error;
      },
    );
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
