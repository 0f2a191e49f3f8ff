// Owns time in the pool's tests: timers fire only when a test advances it. Test support, nothing else imports it.
// Invariant: between two steps every promise that could settle has settled.
import { mock } from 'node:test';

const realSetImmediate = globalThis.setImmediate;
const promisesSettled = () => new Promise<void>((resolve) => realSetImmediate(resolve));

export interface VirtualTime extends Disposable {
  now(): number;
  /** A step above 1 is for long quiet stretches: promises then settle only at its end. */
  advance(elapsedMs: number, stepMs?: number): Promise<void>;
}

/** Replaces the timers of this process until disposed. */
export function startVirtualTime(): VirtualTime {
  mock.timers.enable({ apis: ['setTimeout', 'setImmediate'] });
  let nowMs = 0;
  return {
    now: () => nowMs,
    async advance(elapsedMs, stepMs = 1) {
      const endMs = nowMs + elapsedMs;
      await promisesSettled();
      while (nowMs < endMs) {
        nowMs += stepMs;
        mock.timers.tick(stepMs);
        await promisesSettled();
      }
    },
    [Symbol.dispose]: () => mock.timers.reset(),
  };
}
