// Owns waiting with an end. Invariant: no wait in Thaw is unbounded; what runs out says what it waited for.
import { ThawError } from './errors.ts';

/** Rejects with `deadline-exceeded` when `work` has not settled after `timeoutMs`; the timer never outlives the work. */
export async function withDeadline<T>(what: string, timeoutMs: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const expiry = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new ThawError('deadline-exceeded', `${what} took longer than ${timeoutMs} ms`)),
      timeoutMs,
    );
  });
  try {
    return await Promise.race([work, expiry]);
  } finally {
    clearTimeout(timer);
  }
}
