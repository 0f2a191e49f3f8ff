// Owns the memory of snapshots that are in the store and not whole here: one pager; leases of its files; what is fetched
// early, what is learnt of clones, when a file is kept.
// Refuses to own the pager's process (pager-process.ts) and snapshots' directories (snapshot/library.ts).
// Invariant: every holder of a lease hears of a page that could not be had; a file is dropped when nobody holds it.
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { snapshotFilesIn } from '../host/paths.ts';
import type { PagedImage, PagedLease, PagedSnapshots } from '../snapshot/paged-lease.ts';
import type { SnapshotRecord } from '../snapshot/record.ts';
import { mergedOrder, type Recording, type WorkingSet } from '../snapshot/working-set.ts';
import type { PagerClient } from './pager-client.ts';
import type { ImageRef, PagerEvent, ServeFrom } from './pager-protocol.ts';

export interface PagedMemoryOptions {
  /** Called again when it is needed after it was lost. */
  openPager(): Promise<PagerClient>;
  keptDir: string;
  log: Log;
  /** Ends a pager that would not end by itself. */
  endPager(): Promise<unknown>;
  /** What earlier clones were seen to need; undefined when nothing is known. Asked before each first restore. */
  workingSetOf(image: PagedImage): Promise<WorkingSet | undefined>;
  onRecorded(image: PagedImage, recording: Recording): Promise<void>;
  /** What a clone needed before its working set had come; all of it that the set lacks is among it. */
  onMissed(image: PagedImage, misses: Recording): Promise<void>;
  /** The plain file is whole; it stays until this has resolved. */
  onKept(image: PagedImage, keptPath: string): Promise<void>;
  /** The pager is lost; a new one is started when it is needed. */
  onLost?(detail: string): void;
  /** From a clone's first answer to the fetching of what it did not need. */
  restAfterMs?: number;
}

interface PagedFile {
  image: PagedImage;
  ref: ImageRef;
  keptPath: string;
  /** Settles when the pager serves it. */
  path: Promise<string>;
  records: boolean;
  answered: boolean;
  holders: Set<(failure: ThawError) => void>;
  leases: number;
  failure: ThawError | undefined;
  failedAtMs: number;
  whole: PromiseWithResolvers<string> | undefined;
  kept: boolean;
}

/** All of a large guest from a slow store. */
const keepTimeoutMs = 600_000;
/** The request that a clone was restored for has the store and the CPUs for itself. */
const defaultRestAfterMs = 1_000;
/** What was expected and did not come is let go again. */
const expectedMs = 60_000;
/** Longer than the pager is silent between two reports of one file. */
const freshFailureMs = 200;
/** The kernel tells that a file is closed a moment after its VMM has ended. */
const dropRetryMs = 200;

export class PagedMemory implements PagedSnapshots {
  readonly #options: PagedMemoryOptions;
  readonly #files = new Map<string, PagedFile>();
  /** Files that the pager still has though nobody holds them. */
  readonly #dropping = new Map<string, Promise<void>>();
  /** What clones needed, on its way to the store. */
  readonly #learning = new Set<Promise<void>>();
  #client: Promise<PagerClient> | undefined;
  #closed = false;

  constructor(options: PagedMemoryOptions) {
    this.#options = options;
  }

  /** Has the pager ready before anybody needs it. @throws ThawError `mount-failed`. */
  async start(): Promise<void> {
    await this.#pager();
  }

  /** Of the pager, for merging with the node's own; empty while none runs. */
  async metrics(): Promise<unknown[]> {
    const client = await this.#client?.catch(() => undefined);
    return (await client?.metrics().catch(() => undefined)) ?? [];
  }

  expect(image: PagedImage): void {
    const file = this.#fileOf(image);
    file.leases++;
    setTimeout(() => this.#released(file), expectedMs).unref();
  }

  async lease(record: SnapshotRecord): Promise<PagedLease> {
    const file = await this.#settledFileOf(imageOf(record));
    file.leases++;
    // What could not be had once may be there now; what failed just now fails again, and is not told of a second time.
    if (performance.now() - file.failedAtMs > freshFailureMs) file.failure = undefined;
    try {
      return leaseOf(file, await file.path, {
        answered: () => void this.#answered(file),
        release: () => this.#released(file),
      });
    } catch (error) {
      this.#released(file);
      throw error;
    }
  }

  async keep(record: SnapshotRecord): Promise<string> {
    return await this.#keep(await this.#settledFileOf(imageOf(record)));
  }

  async #keep(file: PagedFile): Promise<string> {
    file.leases++;
    try {
      await file.path;
      if (file.kept) return file.keptPath;
      file.whole ??= Promise.withResolvers();
      const { promise } = file.whole;
      // It may fail before it is waited for.
      promise.catch(() => {});
      await (await this.#pager()).complete(file.ref);
      return await withDeadline(`fetching all of ${file.ref.snapshotId}`, keepTimeoutMs, promise);
    } finally {
      this.#released(file);
    }
  }

  /** The pages that `use` touches of a page file that is here, in order: a rehearsal for restores elsewhere. */
  async recordPlain(
    snapshotId: string,
    from: { plainPath: string; far: boolean },
    use: (path: string) => Promise<void>,
  ): Promise<Recording> {
    const client = await this.#pager();
    const ref: ImageRef = { snapshotId, image: 'memory' };
    const path = await client.add(ref, from, { record: true });
    try {
      await use(path);
      return await client.recording(ref);
    } finally {
      await this.#remove(ref);
    }
  }

  /** Ends the pager; VMs that still map its files end with it. */
  async close(): Promise<void> {
    await Promise.all(this.#learning);
    this.#closed = true;
    const client = await this.#client?.catch(() => undefined);
    for (const { whole } of this.#files.values())
      whole?.reject(new ThawError('pager-lost', 'the node shuts down'));
    this.#files.clear();
    // Refused while the kernel has not closed the files of VMs that have just ended.
    await client?.stop().catch(() => client.close());
    await this.#options.endPager();
  }

  /** What was expected may have failed because its manifest has moved since, where the snapshot now is. */
  async #settledFileOf(image: PagedImage): Promise<PagedFile> {
    const known = this.#files.get(image.snapshotId);
    if (known && known.image.manifestPath !== image.manifestPath) await known.path.catch(() => {});
    return this.#fileOf(image);
  }

  #fileOf(image: PagedImage): PagedFile {
    const { snapshotId } = image;
    const known = this.#files.get(snapshotId);
    if (known) return known;
    const file: PagedFile = {
      image,
      ref: { snapshotId, image: 'memory' },
      keptPath: join(this.#options.keptDir, snapshotId),
      path: Promise.resolve(''),
      records: false,
      answered: false,
      holders: new Set(),
      leases: 0,
      failure: undefined,
      failedAtMs: Number.NEGATIVE_INFINITY,
      whole: undefined,
      kept: false,
    };
    this.#files.set(snapshotId, file);
    file.path = this.#add(file);
    file.path.catch(() => this.#forget(file));
    return file;
  }

  #forget(file: PagedFile): void {
    const { snapshotId } = file.ref;
    if (this.#files.get(snapshotId) === file) this.#files.delete(snapshotId);
  }

  async #add(file: PagedFile): Promise<string> {
    const { image, ref, keptPath } = file;
    await this.#dropping.get(ref.snapshotId);
    const [client, workingSet] = await Promise.all([this.#pager(), this.#options.workingSetOf(image)]);
    await mkdir(this.#options.keptDir, { recursive: true, mode: 0o700 });
    const from: ServeFrom = { manifestPath: image.manifestPath, keepPath: keptPath };
    file.records = workingSet === undefined;
    const path = await client.add(ref, from, { record: file.records });
    if (workingSet)
      client
        .prefetch(ref, mergedOrder(workingSet))
        .catch((error) => this.#options.log.warn({ err: error, ...ref }, 'not fetched ahead'));
    return path;
  }

  async #answered(file: PagedFile): Promise<void> {
    if (file.answered) return;
    file.answered = true;
    // Held also when the clone has ended by then: the next one finds all of it here.
    file.leases++;
    const learning = this.#learn(file).finally(() => this.#learning.delete(learning));
    this.#learning.add(learning);
    await learning;
    const { log, restAfterMs = defaultRestAfterMs } = this.#options;
    setTimeout(() => {
      if (this.#files.get(file.ref.snapshotId) === file)
        void this.#keep(file).catch((error) =>
          log.warn({ err: error, ...file.ref }, 'the rest of the memory stays in the store'),
        );
      this.#released(file);
    }, restAfterMs).unref();
  }

  async #learn(file: PagedFile): Promise<void> {
    const { onRecorded, onMissed } = this.#options;
    try {
      const recording = await (await this.#pager()).recording(file.ref);
      await (file.records ? onRecorded : onMissed)(file.image, recording);
    } catch (error) {
      this.#options.log.warn({ err: error, ...file.ref }, 'the working set was not recorded');
    }
  }

  #released(file: PagedFile): void {
    file.leases--;
    if (file.leases > 0 || this.#closed || this.#files.get(file.ref.snapshotId) !== file) return;
    this.#forget(file);
    this.#dropped(file, this.#remove(file.ref));
  }

  /** Whoever wants it again waits until nothing of this one is left. */
  #dropped({ ref: { snapshotId }, keptPath }: PagedFile, removed: Promise<void>): void {
    const dropping = removed
      .then(() => Promise.all([keptPath, `${keptPath}.partial`].map((path) => rm(path, { force: true }))))
      .then(() => {})
      .catch((error) => this.#options.log.warn({ err: error, snapshotId }, 'a kept page file stays'))
      .finally(() => {
        if (this.#dropping.get(snapshotId) === dropping) this.#dropping.delete(snapshotId);
      });
    this.#dropping.set(snapshotId, dropping);
  }

  /** Until the kernel has closed it, for as long as the pager lives. */
  async #remove(ref: ImageRef): Promise<void> {
    for (;;) {
      if (this.#closed) return;
      try {
        return await (await this.#client)?.remove(ref);
      } catch (error) {
        if (!(error instanceof ThawError) || error.code !== 'conflict') return;
      }
      await new Promise((resolve) => setTimeout(resolve, dropRetryMs).unref());
    }
  }

  #pager(): Promise<PagerClient> {
    if (this.#closed) throw new ThawError('pager-lost', 'the node shuts down');
    this.#client ??= this.#openPager();
    return this.#client;
  }

  async #openPager(): Promise<PagerClient> {
    try {
      const client = await this.#options.openPager();
      client.onEvent((event) => this.#onEvent(event));
      void client.lost.then(({ detail }) => this.#onLost(detail));
      return client;
    } catch (error) {
      this.#client = undefined;
      throw error;
    }
  }

  #onEvent(event: PagerEvent): void {
    const file = this.#files.get(event.snapshotId);
    if (!file) return;
    if (event.event === 'kept') void this.#kept(file);
    else if (event.event === 'pages-failed') this.#fail(file, new ThawError(event.code, event.detail));
    else if (event.event === 'keep-failed') {
      file.whole?.reject(new ThawError('store-unavailable', event.detail));
      file.whole = undefined;
    }
  }

  async #kept(file: PagedFile): Promise<void> {
    file.kept = true;
    file.leases++;
    try {
      await this.#options.onKept(file.image, file.keptPath);
      file.whole?.resolve(file.keptPath);
    } catch (error) {
      file.whole?.reject(error);
    } finally {
      this.#released(file);
    }
  }

  #fail(file: PagedFile, failure: ThawError): void {
    file.failure = failure;
    file.failedAtMs = performance.now();
    for (const listener of file.holders) listener(failure);
    file.whole?.reject(failure);
    file.whole = undefined;
  }

  #onLost(detail: string): void {
    const files = [...this.#files.values()];
    this.#files.clear();
    this.#client = undefined;
    this.#options.onLost?.(detail);
    for (const file of files) {
      this.#dropped(file, Promise.resolve());
      this.#fail(file, new ThawError('pager-lost', detail));
    }
  }
}

const imageOf = ({ snapshotId, memoryMb, dir }: SnapshotRecord): PagedImage => ({
  snapshotId,
  memoryMb,
  manifestPath: snapshotFilesIn(dir).manifestPath,
});

function leaseOf(
  file: PagedFile,
  path: string,
  { answered, release }: Pick<PagedLease, 'answered' | 'release'>,
): PagedLease {
  const own = new Set<(failure: ThawError) => void>();
  let released = false;
  return {
    path,
    get failure() {
      return file.failure;
    },
    onFailure(listener) {
      own.add(listener);
      file.holders.add(listener);
      // It happened between the lease and now.
      if (file.failure) listener(file.failure);
    },
    answered,
    release() {
      if (released) return;
      released = true;
      for (const listener of own) file.holders.delete(listener);
      release();
    },
  };
}
