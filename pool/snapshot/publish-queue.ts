// Owns bringing this node's snapshots to the store, one at a time, in the background: parents before children, again
// and again while the store does not answer. Refuses to own how one is published (publish.ts).
// Invariant: a snapshot waits here from its capture until it is in the store, is removed, or can never be there; what
// waited when this process ended waits again after the next start.
import { setTimeout as delay } from 'node:timers/promises';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import type { SnapshotRecord } from './record.ts';

export interface PublishQueueOptions {
  /** @throws ThawError; see `passing` for those after which it is tried again. */
  publish(snapshotId: string, signal: AbortSignal): Promise<void>;
  log: Log;
  firstRetryMs?: number;
  maxRetryMs?: number;
}

/** What another try may find mended. ENOENT: a file changed its form, or its owner went, while it was read. */
const passing = new Set([
  'store-unavailable',
  'deadline-exceeded',
  'no-space',
  'store-refused',
  'pager-lost',
  'ENOENT',
]);

export class PublishQueue {
  readonly #options: Required<PublishQueueOptions>;
  /** In the order of publishing. */
  readonly #waiting = new Set<string>();
  readonly #stored = new Set<string>();
  /** Why it will never be there. */
  readonly #refused = new Map<string, string>();
  readonly #end = new AbortController();
  #current: { snapshotId: string; abort: AbortController } | undefined;
  #working: Promise<void> | undefined;
  #retryMs = 0;

  constructor(options: PublishQueueOptions) {
    this.#options = { firstRetryMs: 500, maxRetryMs: 60_000, ...options };
  }

  /** Nothing to do for one that waits, or is there. */
  add({ snapshotId }: Pick<SnapshotRecord, 'snapshotId'>): void {
    if (this.#end.signal.aborted || this.#stored.has(snapshotId)) return;
    this.#waiting.add(snapshotId);
    this.#working ??= this.#work().finally(() => {
      this.#working = undefined;
    });
  }

  /** It is in the store already. */
  markStored(snapshotId: string): void {
    this.#waiting.delete(snapshotId);
    this.#stored.add(snapshotId);
  }

  /** It was removed here: a publish under way ends. */
  remove(snapshotId: string): void {
    this.#waiting.delete(snapshotId);
    this.#stored.delete(snapshotId);
    this.#refused.delete(snapshotId);
    if (this.#current?.snapshotId === snapshotId)
      this.#current.abort.abort(new ThawError('template-not-found', `${snapshotId} was removed`));
  }

  stateOf(snapshotId: string): 'stored' | 'waiting' | 'refused' | 'unknown' {
    if (this.#stored.has(snapshotId)) return 'stored';
    if (this.#waiting.has(snapshotId)) return 'waiting';
    return this.#refused.has(snapshotId) ? 'refused' : 'unknown';
  }

  /** For health: how many wait, and since when the store fails. */
  get backlog(): { waiting: number; failing: boolean } {
    return { waiting: this.#waiting.size, failing: this.#retryMs > 0 };
  }

  /** Resolves when nothing waits. */
  async settled(): Promise<void> {
    await this.#working;
  }

  /** Ends what is under way; it is published after the next start. */
  async close(): Promise<void> {
    this.#end.abort(new ThawError('deadline-exceeded', 'the node shuts down'));
    this.#current?.abort.abort(this.#end.signal.reason);
    await this.#working;
  }

  async #work(): Promise<void> {
    for (let next = first(this.#waiting); next && !this.#end.signal.aborted; next = first(this.#waiting)) {
      const abort = new AbortController();
      this.#current = { snapshotId: next, abort };
      try {
        await this.#options.publish(next, abort.signal);
        if (this.#waiting.has(next)) this.markStored(next);
        this.#retryMs = 0;
      } catch (error) {
        await this.#failed(next, error as Error);
      } finally {
        this.#current = undefined;
      }
    }
  }

  async #failed(snapshotId: string, error: Error): Promise<void> {
    const { log, firstRetryMs, maxRetryMs } = this.#options;
    if (!this.#waiting.has(snapshotId) || this.#end.signal.aborted) return;
    if (!passing.has((error as NodeJS.ErrnoException).code ?? '')) {
      log.error({ err: error, snapshotId }, 'a snapshot cannot be published');
      metrics.fallbacks.inc({ kind: 'not-published' });
      this.#waiting.delete(snapshotId);
      this.#refused.set(snapshotId, error.message);
      return;
    }
    this.#retryMs = Math.min(maxRetryMs, this.#retryMs === 0 ? firstRetryMs : this.#retryMs * 2);
    log.warn({ err: error, snapshotId, retryMs: this.#retryMs }, 'a snapshot waits for the store');
    await delay(this.#retryMs, undefined, { signal: this.#end.signal, ref: false }).catch(() => {});
  }
}

const first = <T>(set: ReadonlySet<T>): T | undefined => set.values().next().value;
