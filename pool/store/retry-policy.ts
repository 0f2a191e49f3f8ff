// Owns when and how soon something is tried again. Refuses to own what is tried.
// Invariant: waits grow and are random, so that many callers do not come back at one moment; the caller's end ends it.
import { setTimeout as delay } from 'node:timers/promises';
import { isTransient } from './blob-store.ts';

export interface RetryPolicy {
  /** The first one included. */
  maxAttempts: number;
  firstDelayMs: number;
  maxDelayMs: number;
  random: () => number;
}

/** 4 attempts within about a second: longer outages are the breaker's. */
export const defaultRetryPolicy: RetryPolicy = {
  maxAttempts: 4,
  firstDelayMs: 50,
  maxDelayMs: 2_000,
  random: Math.random,
};

export async function attempts<T>(
  policy: RetryPolicy,
  signal: AbortSignal,
  work: (attempt: number) => Promise<T>,
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work(attempt);
    } catch (error) {
      if (attempt >= policy.maxAttempts || !isTransient(error) || signal.aborted) throw error;
      await waitBefore(attempt, policy, signal);
    }
  }
}

/** Full jitter: anything from nothing to the whole step. */
async function waitBefore(attempt: number, policy: RetryPolicy, signal: AbortSignal): Promise<void> {
  const stepMs = Math.min(policy.maxDelayMs, policy.firstDelayMs * 2 ** (attempt - 1));
  await delay(stepMs * policy.random(), undefined, { signal }).catch(() => {
    throw signal.reason;
  });
}
