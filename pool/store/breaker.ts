// Owns the circuit breaker: a store that keeps failing is left alone for a while, and its callers fail at once.
// Refuses to own retries. Invariant: closed → open after `maxFailures` in a row; open → half-open when the pause is over;
// half-open lets one request through, which closes it or opens it for twice as long.
import { metrics } from '../../shared/metrics.ts';
import { StoreError } from './blob-store.ts';
import type { Around, StoreRequest } from './wrapped-store.ts';

export type BreakerState = 'closed' | 'open' | 'half-open';

export interface BreakerOptions {
  /** In a row, without a success in between. */
  maxFailures?: number;
  firstPauseMs?: number;
  maxPauseMs?: number;
  now?: () => number;
  random?: () => number;
}

export class Breaker {
  readonly #options: Required<BreakerOptions>;
  #failures = 0;
  #pauseMs: number;
  #openUntilMs: number | undefined;
  #probing = false;

  constructor(options: BreakerOptions = {}) {
    this.#options = {
      maxFailures: options.maxFailures ?? 8,
      firstPauseMs: options.firstPauseMs ?? 500,
      maxPauseMs: options.maxPauseMs ?? 15_000,
      now: options.now ?? (() => performance.now()),
      random: options.random ?? Math.random,
    };
    this.#pauseMs = this.#options.firstPauseMs;
  }

  get state(): BreakerState {
    if (this.#openUntilMs === undefined) return 'closed';
    return this.#options.now() < this.#openUntilMs ? 'open' : 'half-open';
  }

  readonly around: Around = async <T>(
    request: StoreRequest,
    call: (options: StoreRequest['options']) => Promise<T>,
  ): Promise<T> => {
    this.#admit(request);
    try {
      const result = await call(request.options);
      this.#succeeded();
      return result;
    } catch (error) {
      this.#failed(error);
      throw error;
    }
  };

  #admit(request: StoreRequest): void {
    const state = this.state;
    if (state === 'closed') return;
    if (state === 'half-open' && !this.#probing) {
      this.#probing = true;
      return;
    }
    metrics.storeRequest.observe({ op: request.op, outcome: 'not-tried' }, 0);
    const leftMs = Math.max(0, (this.#openUntilMs ?? 0) - this.#options.now());
    throw new StoreError('not-tried', `${request.what}: the store does not answer and is left alone`, {
      retryAfterSeconds: Math.ceil(leftMs / 1000) || 1,
    });
  }

  #succeeded(): void {
    this.#failures = 0;
    this.#probing = false;
    this.#openUntilMs = undefined;
    this.#pauseMs = this.#options.firstPauseMs;
  }

  /** An answer, even a refusal, shows that the store is there; a caller who gave up shows nothing. */
  #failed(error: unknown): void {
    const failure = error instanceof StoreError ? error.failure : 'unavailable';
    if (failure === 'aborted') {
      this.#probing = false;
      return;
    }
    if (failure !== 'unavailable' && failure !== 'deadline') {
      this.#succeeded();
      return;
    }
    this.#failures += 1;
    const { maxFailures, maxPauseMs, now, random } = this.#options;
    if (!this.#probing && this.#failures < maxFailures) return;
    this.#probing = false;
    // Half to whole: nodes of a cluster do not all come back at one moment.
    this.#openUntilMs = now() + this.#pauseMs * (0.5 + random() / 2);
    this.#pauseMs = Math.min(maxPauseMs, this.#pauseMs * 2);
  }
}
