// Owns the end of every store request: the caller's signal, the deadline, and what each becomes as an error.
// Invariant: when `runRequest` settles, its timer and listener are gone; work that comes in late is discarded.
import { Readable } from 'node:stream';
import { defaultTimeoutMs, type RequestOptions, StoreError } from './blob-store.ts';

/** An end in time that can be handed down: to a request, or to a stream that outlives it. */
export class RequestEnd {
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #caller: AbortSignal | undefined;
  readonly #onCallerAbort: () => void;

  constructor(what: string, options: RequestOptions) {
    const { signal, timeoutMs = defaultTimeoutMs } = options;
    const end = (error: StoreError) => this.#controller.abort(error);
    this.#onCallerAbort = () =>
      end(new StoreError('aborted', `${what} was given up by its caller`, { cause: signal?.reason }));
    this.#caller = signal;
    this.#timer = setTimeout(
      () => end(new StoreError('deadline', `${what} took longer than ${timeoutMs} ms`)),
      timeoutMs,
    );
    if (signal?.aborted) this.#onCallerAbort();
    else signal?.addEventListener('abort', this.#onCallerAbort, { once: true });
  }

  /** Its reason is a StoreError. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  throwIfEnded(): void {
    this.signal.throwIfAborted();
  }

  /** Rejects when the end comes first. What `work` does afterwards is nobody's business any more. */
  async race<T>(work: Promise<T>): Promise<T> {
    work.catch(() => {});
    let onEnd = () => {};
    const ended = new Promise<never>((_, reject) => {
      onEnd = () => reject(this.signal.reason);
      if (this.signal.aborted) onEnd();
      else this.signal.addEventListener('abort', onEnd, { once: true });
    });
    try {
      return await Promise.race([work, ended]);
    } finally {
      this.signal.removeEventListener('abort', onEnd);
    }
  }

  release(): void {
    clearTimeout(this.#timer);
    this.#caller?.removeEventListener('abort', this.#onCallerAbort);
  }
}

export async function runRequest<T>(
  what: string,
  options: RequestOptions,
  work: (end: RequestEnd) => Promise<T>,
): Promise<T> {
  const end = new RequestEnd(what, options);
  try {
    end.throwIfEnded();
    return await end.race(work(end));
  } catch (error) {
    // A client that was aborted throws something of its own; the reason says why.
    throw end.signal.aborted ? end.signal.reason : error;
  } finally {
    end.release();
  }
}

/** `source` held to `sizeBytes` and to `end`, which is released with it, read to its end or not. */
export function boundedStream(
  what: string,
  source: Readable,
  sizeBytes: number,
  end: RequestEnd,
  translate: (error: unknown) => unknown,
): Readable {
  const pieces = boundedPieces(what, source, sizeBytes, end, translate);
  const stream = Readable.from(pieces, { objectMode: false });
  stream.once('close', () => {
    source.destroy();
    end.release();
  });
  return stream;
}

export async function* boundedPieces(
  what: string,
  source: Readable,
  sizeBytes: number,
  end: RequestEnd,
  translate: (error: unknown) => unknown,
): AsyncGenerator<Buffer> {
  let seenBytes = 0;
  const onEnd = () => source.destroy(end.signal.reason);
  if (end.signal.aborted) onEnd();
  else end.signal.addEventListener('abort', onEnd, { once: true });
  try {
    for await (const piece of source as AsyncIterable<Buffer>) {
      seenBytes += piece.length;
      if (seenBytes > sizeBytes) break;
      yield piece;
    }
  } catch (error) {
    throw end.signal.aborted ? end.signal.reason : translate(error);
  } finally {
    end.signal.removeEventListener('abort', onEnd);
    source.destroy();
  }
  if (seenBytes !== sizeBytes)
    throw new StoreError('out-of-range', `${what}: ${seenBytes} of ${sizeBytes} bytes came`);
}
