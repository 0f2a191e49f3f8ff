// Owns waiting with an end: one timer and the caller's signal, joined into the signal that ends a request.
// Invariant: a deadline that was cleared leaves no timer and no listener.
import { DeadlineExceededError } from './errors.ts';

/** Timers cannot be set for longer. */
const maxTimerMs = 2 ** 31 - 1;

export class Deadline {
  readonly #controller = new AbortController();
  readonly #outer: AbortSignal | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /**
   * @param what what is waited for, for the error's message.
   * @param timeoutMs milliseconds from now; 0: none.
   * @param outer aborts the wait with its own reason.
   */
  constructor(what: string, timeoutMs: number, outer?: AbortSignal) {
    this.#outer = outer;
    if (outer?.aborted) this.#controller.abort(outer.reason);
    outer?.addEventListener('abort', this.#onOuter, { once: true });
    this.restart(what, timeoutMs);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Waits for something else, or for the next piece of the same. */
  restart(what: string, timeoutMs: number): void {
    clearTimeout(this.#timer);
    if (timeoutMs <= 0 || this.signal.aborted) return;
    const expire = () =>
      this.abort(
        new DeadlineExceededError(`${what} took longer than ${timeoutMs} ms`, { code: 'deadline-exceeded' }),
      );
    this.#timer = setTimeout(expire, Math.min(timeoutMs, maxTimerMs));
  }

  /** Until `restart` nothing is waited for. */
  pause(): void {
    clearTimeout(this.#timer);
  }

  abort(reason: unknown): void {
    this.clear();
    this.#controller.abort(reason);
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener('abort', this.#onOuter);
  }

  readonly #onOuter = (): void => this.abort(this.#outer!.reason);
}
