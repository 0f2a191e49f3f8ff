// Owns how many reads of the store run at once, and that a guest's fault overtakes what is only fetched ahead.
// Invariant: at most `limit` run; what waits ahead of need keeps at least one place free for a fault.

export type Urgency = 'fault' | 'ahead';

export class FetchGate {
  readonly #limit: number;
  readonly #waiting: Record<Urgency, (() => void)[]> = { fault: [], ahead: [] };
  #running = 0;

  constructor(limit: number) {
    // One for what is ahead, one that it may not take: a run can wait for a frame that a fault fetches.
    this.#limit = Math.max(2, limit);
  }

  get waiting(): number {
    return this.#waiting.fault.length + this.#waiting.ahead.length;
  }

  async run<T>(urgency: Urgency, work: () => Promise<T>): Promise<T> {
    if (!this.#admits(urgency)) await new Promise<void>((resolve) => this.#waiting[urgency].push(resolve));
    else this.#running++;
    try {
      return await work();
    } finally {
      this.#running--;
      this.#admitNext();
    }
  }

  #admits(urgency: Urgency): boolean {
    return this.#running < (urgency === 'fault' ? this.#limit : this.#limit - 1);
  }

  #admitNext(): void {
    for (const urgency of ['fault', 'ahead'] as const)
      while (this.#waiting[urgency].length > 0 && this.#admits(urgency)) {
        this.#running++;
        this.#waiting[urgency].shift()?.();
      }
  }
}
