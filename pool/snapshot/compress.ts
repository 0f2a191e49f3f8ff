// Owns compressing an image's changed runs on other threads, in order and with a bounded number of pieces under way.
// Refuses to own what a piece goes through (compress-worker.ts) and where frames go (spool.ts).
// Invariant: pieces come back in the order of the image, whatever the threads do; the event loop only passes them on.
import { availableParallelism } from 'node:os';
import { Piscina } from 'piscina';
import { ThawError } from '../../shared/errors.ts';
import type { CompressOutcome, CompressResult, CompressTask } from './compress-worker.ts';
import { type RunTable, restrictedTo, rowAt, sliced } from './run-table.ts';

/** Big enough for large reads and whole frames, small enough to be shared out among threads. */
const taskBytes = 4 * 1024 * 1024;
const idleTimeoutMs = 10_000;
/** Compression must not take the CPU from guests. */
const niceIncrement = 10;

export interface CompressedPiece extends CompressResult {
  runs: RunTable;
}

export class Compressor {
  readonly #threads: number;
  readonly #pool: Piscina<CompressTask, CompressOutcome>;

  constructor(threads = Math.max(1, availableParallelism() - 1)) {
    this.#threads = threads;
    this.#pool = new Piscina({
      filename: new URL('./compress-worker.ts', import.meta.url).href,
      minThreads: 0,
      maxThreads: threads,
      idleTimeout: idleTimeoutMs,
      niceIncrement,
      recordTiming: false,
    });
  }

  async *compress(
    runs: RunTable,
    parent: RunTable | undefined,
    signal?: AbortSignal,
  ): AsyncGenerator<CompressedPiece> {
    const tasks = sliced(runs, taskBytes);
    const underWay: { slice: RunTable; outcome: Promise<CompressOutcome> }[] = [];
    const start = () => {
      const { value: slice, done } = tasks.next();
      if (done) return;
      const outcome = this.#pool.run({ runs: slice, parent: parent && restrictedTo(parent, rowsOf(slice)) });
      // Taken up below in its turn, or not at all when an earlier one failed.
      outcome.catch(() => {});
      underWay.push({ slice, outcome });
    };
    for (let ahead = 0; ahead < this.#threads + 1; ahead++) start();
    for (let next = underWay.shift(); next; next = underWay.shift()) {
      const outcome = await next.outcome;
      signal?.throwIfAborted();
      start();
      yield { runs: next.slice, ...resultOf(outcome) };
    }
  }

  async close(): Promise<void> {
    await this.#pool.destroy();
  }
}

function* rowsOf(table: RunTable) {
  for (let row = 0; row < table.file.length; row++) yield rowAt(table, row);
}

function resultOf(outcome: CompressOutcome): CompressResult {
  if (!('failed' in outcome)) return outcome;
  const { code, message } = outcome.failed;
  const gone = code === 'ENOENT' || code === 'ENDED';
  throw new ThawError(gone ? 'snapshot-damaged' : 'internal', `reading the capture: ${message}`);
}
