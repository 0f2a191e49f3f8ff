// Owns one request that waits for a VM: its place in line, its deadline and its caller's abort signal.
// Refuses to own when a VM comes. Invariant: it settles once, and then holds no timer and no listener.

import type { Lease } from './lease.ts';
import { type LinkedList, ListMember } from './linked-list.ts';

export interface AcquireOptions {
  /** How long to wait for a VM, from the call on. */
  timeoutMs: number;
  /** Aborts when the caller no longer wants it; acquire then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
}

export class Waiter extends ListMember {
  readonly askedAtMs: number;
  readonly lease: Promise<Lease>;
  #line: LinkedList<Waiter>;
  #resolve!: (lease: Lease) => void;
  #reject!: (reason: unknown) => void;
  #timer: NodeJS.Timeout;
  #signal: AbortSignal | undefined;
  #onLeave: () => void;
  #onAbort = () => this.refuse(this.#signal?.reason);

  /** Joins the end of `line`. `on.timedOut` makes the error of a deadline that passed. */
  constructor(
    line: LinkedList<Waiter>,
    askedAtMs: number,
    options: AcquireOptions,
    on: { timedOut: () => Error; leave: () => void },
  ) {
    super();
    this.#onLeave = on.leave;
    this.askedAtMs = askedAtMs;
    this.lease = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.#line = line;
    this.#signal = options.signal;
    this.#signal?.addEventListener('abort', this.#onAbort);
    this.#timer = setTimeout(() => this.refuse(on.timedOut()), options.timeoutMs);
    line.push(this);
  }

  grant(lease: Lease): void {
    this.#leave();
    this.#resolve(lease);
  }

  refuse(reason: unknown): void {
    this.#leave();
    this.#reject(reason);
  }

  #leave(): void {
    this.#line.remove(this);
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#onLeave();
  }
}
