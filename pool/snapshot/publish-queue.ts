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
  #current: { snapshotId: string; abort: AbortController; ended: Promise<void> } | undefined;
  #working: Promise<void> | undefined;
  #retryMs = 0;

  constructor(options: PublishQueueOptions) {
    this.#options = { firstRetryMs: 500, maxRetryMs: 60_000, ...options };
  }

  /** Nothing to do for one that waits, or is there. */
  add({ snapshotId }: Pick<SnapshotRecord, 'snapshotId'>): void {
    if (this.#end.signal.aborted || this.#stored.has(snapshotId)) return;
    this.#refused.delete(snapshotId);
    this.#waiting.add(snapshotId);
    this.#working ??= this.#work();
  }

  /** It is in the store already. */
  markStored(snapshotId: string): void {
    this.#waiting.delete(snapshotId);
    this.#stored.add(snapshotId);
  }

  /** It was removed here. Resolves when no publish of it is under way any more: what the store has now is all of it. */
  async remove(snapshotId: string): Promise<void> {
    this.#waiting.delete(snapshotId);
    this.#stored.delete(snapshotId);
    this.#refused.delete(snapshotId);
    if (this.#current?.snapshotId !== snapshotId) return;
    const { abort, ended } = this.#current;
    abort.abort(new ThawError('template-not-found', `${snapshotId} was removed`));
    await ended;
  }

  stateOf(snapshotId: string): 'stored' | 'waiting' | 'refused' | 'unknown' {
    if (this.#stored.has(snapshotId)) return 'stored';
    if (this.#waiting.has(snapshotId)) return 'waiting';
    return this.#refused.has(snapshotId) ? 'refused' : 'unknown';
  }

  /** The one that is being published. */
  get current(): string | undefined {
    return this.#current?.snapshotId;
  }

  /** For health: how many wait, and since when the store fails. */
  get backlog(): { waiting: number; failing: boolean } {
    return { waiting: this.#waiting.size, failing: this.#retryMs > 0 && this.#waiting.size > 0 };
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
    for (let next = first(this.#waiting); next && !this.#end.signal.aborted; next = first(this.#waiting))
      await this.#tryOne(next);
    // In the same turn as the look that found nothing: what is added later starts anew.
    this.#working = undefined;
    this.#retryMs = 0;
  }

  async #tryOne(snapshotId: string): Promise<void> {
    const abort = new AbortController();
    const ended = Promise.withResolvers<void>();
    this.#current = { snapshotId, abort, ended: ended.promise };
    let failure: unknown;
    try {
      await this.#options.publish(snapshotId, abort.signal);
    } catch (error) {
      failure = error;
    }
    this.#current = undefined;
    ended.resolve();
    // Of a removed one, which may have come back as another of the same id, neither counts.
    if (abort.signal.aborted) return;
    if (failure) return await this.#failed(snapshotId, failure as Error);
    this.markStored(snapshotId);
    this.#retryMs = 0;
  }

  async #failed(snapshotId: string, error: Error): Promise<void> {
    const { log, firstRetryMs, maxRetryMs } = this.#options;
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
