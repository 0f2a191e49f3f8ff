// Owns how many requests a store gets at one time from this process, and how many wait.
// Invariant: when the store is slow, callers beyond the queue are told at once; nothing piles up without a bound.
import { StoreError } from './blob-store.ts';
import { RequestEnd } from './request.ts';
import type { Around } from './wrapped-store.ts';

export interface LimitOptions {
  maxRunning?: number;
  maxWaiting?: number;
}

export function limited(options: LimitOptions = {}): Around {
  const { maxRunning = 64, maxWaiting = 1024 } = options;
  const waiting = new Set<() => void>();
  let running = 0;
  const enter = async (what: string, end: RequestEnd) => {
    if (running < maxRunning) {
      running += 1;
      return;
    }
    if (waiting.size >= maxWaiting)
      throw new StoreError('not-tried', `${what}: ${waiting.size} requests wait for the store already`, {
        retryAfterSeconds: 1,
      });
    let admit = () => {};
    const turn = new Promise<void>((resolve) => {
      admit = resolve;
      waiting.add(admit);
    });
    try {
      await end.race(turn);
    } catch (error) {
      // Given a turn in the same moment as its end: the turn goes on to the next.
      if (!waiting.delete(admit)) leave();
      throw error;
    }
  };
  const leave = () => {
    const [next] = waiting;
    if (next === undefined) {
      running -= 1;
      return;
    }
    waiting.delete(next);
    next();
  };
  return async (request, call) => {
    const end = new RequestEnd(request.what, request.options);
    try {
      await enter(request.what, end);
    } finally {
      end.release();
    }
    try {
      return await call(request.options);
    } finally {
      leave();
    }
  };
}
