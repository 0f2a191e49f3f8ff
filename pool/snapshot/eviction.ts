// Owns keeping room on the data directory's disk: when it fills up, caches are emptied and local copies of snapshots go,
// least recently used first, until a lower mark is reached. Refuses to own how a copy is removed (library.ts), what the
// store has (stored-snapshots.ts) and what the caches are. Invariant: a snapshot goes only when nobody uses it and all of
// it was just seen in the store; without a store none goes, and a disk that stays too full is told of.
import { statfs } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import type { SnapshotLibrary } from './library.ts';
import type { SnapshotRecord } from './record.ts';
import type { StoredSnapshots } from './stored-snapshots.ts';

/** Parts of the disk in use, percent, as `df` counts them. */
export interface DiskMarks {
  abovePercent: number;
  toPercent: number;
}

/** Files that can be had again without a snapshot's loss. */
export interface Cache {
  /** For the metrics: one word. */
  kind: string;
  /** Removes what nobody uses. @returns bytes that this gives back. */
  empty(): Promise<number>;
}

export interface EvictionOptions {
  marks: DiskMarks;
  library: SnapshotLibrary;
  /** Absent where no store is configured. */
  stored: Pick<StoredSnapshots, 'stateOf' | 'hasAllOf' | 'unpin'> | undefined;
  /** Snapshots that are served from, or kept ready to be. Asked at every turn, without waiting. */
  inUse(): ReadonlySet<string>;
  caches: readonly Cache[];
  log: Log;
  everyMs?: number;
  /** What was used so recently counts as used: somebody may be about to start a VM of it. */
  restMs?: number;
}

/** A look costs one system call; a disk that fills up at 1 GB/s has 10 GB more by the next one. */
const defaultEveryMs = 10_000;
const defaultRestMs = 10_000;

export class Eviction {
  readonly #options: Required<EvictionOptions>;
  #timer: NodeJS.Timeout | undefined;
  #sweeping: Promise<void> | undefined;
  #closed = false;
  #note: string | undefined;

  constructor(options: EvictionOptions) {
    this.#options = { everyMs: defaultEveryMs, restMs: defaultRestMs, ...options };
  }

  start(): void {
    const { everyMs, log } = this.#options;
    const sweep = () =>
      void this.sweep().catch((error) => log.error({ err: error }, 'room could not be made on the disk'));
    this.#timer = setInterval(sweep, everyMs).unref();
    sweep();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    await this.#sweeping?.catch(() => {});
  }

  /** For people: why the disk is fuller than it should be; undefined when it is not. */
  get note(): string | undefined {
    return this.#note;
  }

  /** Looks, and makes room when there is too little. Joins the one under way. */
  sweep(): Promise<void> {
    this.#sweeping ??= this.#sweep().finally(() => {
      this.#sweeping = undefined;
    });
    return this.#sweeping;
  }

  async #sweep(): Promise<void> {
    const { abovePercent } = this.#options.marks;
    let reason: string | undefined;
    if ((await this.#usedPercent()) > abovePercent) {
      await this.#emptyCaches();
      reason = await this.#evictSnapshots();
    }
    const usedPercent = await this.#usedPercent();
    this.#tell(usedPercent > abovePercent ? reason : undefined, usedPercent);
  }

  async #emptyCaches(): Promise<void> {
    const { caches, log } = this.#options;
    for (const { kind, empty } of caches) {
      const bytes = await empty().catch((error) => {
        log.warn({ err: error, kind }, 'a cache was not emptied');
        return 0;
      });
      if (bytes === 0) continue;
      counted(kind, bytes);
      log.info({ kind, bytes }, 'evicted: what can be had again');
    }
  }

  /** @returns why no more can go; undefined when enough has gone. */
  async #evictSnapshots(): Promise<string | undefined> {
    const { stored, marks, library } = this.#options;
    if (!stored) return 'nothing is evicted without a store (THAW_STORE)';
    const left = await this.#leastRecentlyUsedFirst();
    const staying = new Set<SnapshotRecord>();
    // Counted, too: a file system may give room back later than it removes.
    let missingBytes = await bytesAbove(library.paths.dataDir, marks.toPercent);
    while (!this.#closed && missingBytes > 0 && (await this.#usedPercent()) > marks.toPercent) {
      const next = nextOf(left, staying, stored);
      if (!next) return 'what is left on this node is in use, or only here';
      try {
        const bytes = await this.#evict(next, stored);
        if (bytes === undefined) staying.add(next);
        else left.splice(left.indexOf(next), 1);
        missingBytes -= bytes ?? 0;
      } catch (error) {
        if (!(error instanceof ThawError)) throw error;
        // Removed meanwhile, by somebody who may.
        if (error.code === 'template-not-found') left.splice(left.indexOf(next), 1);
        else return `the store does not say what it has: ${error.message}`;
      }
    }
    return undefined;
  }

  async #leastRecentlyUsedFirst(): Promise<SnapshotRecord[]> {
    const { library } = this.#options;
    const rows = await Promise.all(
      (await library.list()).map(async (record) => ({
        record,
        usedAtMs: await library.use.lastUsedAtMs(record.snapshotId),
      })),
    );
    return rows.sort((a, b) => a.usedAtMs - b.usedAtMs).map(({ record }) => record);
  }

  /** @returns bytes that this gave back; undefined when it stays. @throws ThawError of the store. */
  async #evict(
    record: SnapshotRecord,
    stored: NonNullable<EvictionOptions['stored']>,
  ): Promise<number | undefined> {
    const { library, inUse, restMs, log } = this.#options;
    const { snapshotId, kind, form } = record;
    const usedAtMs = await library.use.lastUsedAtMs(snapshotId);
    const isUsed = () => library.use.isUsed(snapshotId) || inUse().has(snapshotId);
    if (Date.now() - usedAtMs < restMs || isUsed()) return undefined;
    if (!(await stored.hasAllOf(record)) || isUsed()) return undefined;
    const bytes = await library.evict(snapshotId);
    if (bytes === undefined) return undefined;
    await stored.unpin(snapshotId);
    counted('snapshot', bytes);
    log.info({ snapshotId, kind, form, bytes, usedAtMs }, 'evicted: the snapshot is in the store');
    return bytes;
  }

  async #usedPercent(): Promise<number> {
    const ratio = await usedRatio(this.#options.library.paths.dataDir);
    metrics.dataDiskUsed.set(ratio);
    return ratio * 100;
  }

  #tell(reason: string | undefined, usedPercent: number): void {
    const { log, marks } = this.#options;
    const known = this.#note;
    if (reason === undefined) {
      this.#note = undefined;
      if (known !== undefined) log.info({ usedPercent }, 'the disk has room again');
      return;
    }
    metrics.fallbacks.inc({ kind: 'disk-too-full' });
    this.#note = `the disk is fuller than ${marks.abovePercent} %: ${reason}`;
    if (known !== this.#note) log.warn({ usedPercent }, this.#note);
  }
}

/** As `df` counts: what only root may use is not there. @throws what statfs fails with. */
async function usageOf(dir: string): Promise<{ usedBytes: number; sizeBytes: number }> {
  const { blocks, bfree, bavail, bsize } = await statfs(dir);
  const used = blocks - bfree;
  return { usedBytes: used * bsize, sizeBytes: (used + bavail) * bsize };
}

export async function usedRatio(dir: string): Promise<number> {
  const { usedBytes, sizeBytes } = await usageOf(dir);
  return sizeBytes === 0 ? 0 : usedBytes / sizeBytes;
}

async function bytesAbove(dir: string, percent: number): Promise<number> {
  const { usedBytes, sizeBytes } = await usageOf(dir);
  return usedBytes - (sizeBytes * percent) / 100;
}

/** The first that nobody here needs: not the base of a delta, and not the parent over which a child is to be published. */
function nextOf(
  left: readonly SnapshotRecord[],
  staying: ReadonlySet<SnapshotRecord>,
  stored: Pick<StoredSnapshots, 'stateOf'>,
): SnapshotRecord | undefined {
  const needed = new Set(
    left.flatMap(({ snapshotId, base, parent }) => [
      base,
      stored.stateOf(snapshotId) === 'stored' ? undefined : parent,
    ]),
  );
  return left.find((record) => !staying.has(record) && !needed.has(record.snapshotId));
}

function counted(kind: string, bytes: number): void {
  metrics.evictions.inc({ kind });
  metrics.evictedBytes.inc({ kind }, bytes);
}
