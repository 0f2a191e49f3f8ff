// Owns hedged reads: a read that takes longer than nearly all others did is asked a second time; the first answer counts.
// Refuses to own failures (retried.ts). Invariant: hedges are a bounded share of reads, so that a store that is slow as a
// whole gets no second load; the loser is aborted.
import { metrics } from '../../shared/metrics.ts';
import type { RequestOptions } from './blob-store.ts';
import type { Around } from './wrapped-store.ts';

export interface HedgeOptions {
  /** Hedges earned by one read: 0.1 is one in ten. */
  earnedPerRead?: number;
  /** Hedges that may be saved up. */
  maxSaved?: number;
  /** Never sooner, however fast the store has been. */
  minDelayMs?: number;
}

const rememberedReads = 128;
/** Before there is anything to go by. */
const firstDelayMs = 1_000;

export function hedged(options: HedgeOptions = {}): Around {
  const { earnedPerRead = 0.1, maxSaved = 10, minDelayMs = 20 } = options;
  const latencies = new RecentLatencies(rememberedReads);
  let saved = maxSaved;
  return async (request, call) => {
    if (request.op !== 'get' && request.op !== 'head') return call(request.options);
    saved = Math.min(maxSaved, saved + earnedPerRead);
    const startMs = performance.now();
    const mayHedge = () => {
      if (saved < 1) return false;
      saved -= 1;
      metrics.fallbacks.inc({ kind: 'hedged-read' });
      return true;
    };
    const delayMs = Math.max(minDelayMs, latencies.high ?? firstDelayMs);
    const result = await firstOf(request.options, call, delayMs, mayHedge);
    latencies.add(performance.now() - startMs);
    return result;
  };
}

async function firstOf<T>(
  options: RequestOptions,
  call: (options: RequestOptions) => Promise<T>,
  delayMs: number,
  mayHedge: () => boolean,
): Promise<T> {
  const controllers: AbortController[] = [];
  const start = () => {
    const controller = new AbortController();
    controllers.push(controller);
    return call({ ...options, signal: controller.signal });
  };
  const onAbort = () => {
    for (const controller of controllers) controller.abort(options.signal?.reason);
  };
  options.signal?.addEventListener('abort', onAbort, { once: true });
  let timer: NodeJS.Timeout | undefined;
  try {
    const first = start();
    if (options.signal?.aborted) onAbort();
    const second = new Promise<T>((resolve, reject) => {
      // A second try that fails decides nothing: the first one is still out.
      timer = setTimeout(() => mayHedge() && start().then(resolve, () => first.catch(reject)), delayMs);
    });
    return await Promise.race([first, second]);
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener('abort', onAbort);
    for (const controller of controllers) controller.abort();
  }
}

/** The last so many durations, and what nearly all of them stayed under. */
class RecentLatencies {
  readonly #ring: Float64Array;
  #count = 0;

  constructor(size: number) {
    this.#ring = new Float64Array(size);
  }

  add(elapsedMs: number): void {
    this.#ring[this.#count++ % this.#ring.length] = elapsedMs;
  }

  get high(): number | undefined {
    const known = Math.min(this.#count, this.#ring.length);
    if (known < 16) return undefined;
    const sorted = this.#ring.slice(0, known).sort();
    return sorted[Math.floor(known * 0.95)]! * 1.5;
  }
}
