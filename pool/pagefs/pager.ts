// Owns a mounted pagefs: which images it serves, their recordings and statistics, and what goes wrong with them.
// Refuses to own the socket it is commanded on (pager-server.ts) and where manifests and segments are (`load`).
// Invariant: what a guest cannot be given is an error that names its snapshot; every file is removed only unmapped.
import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { pageBytes, pagesIn } from '../snapshot/extents.ts';
import type { Image } from '../snapshot/manifest.ts';
import type { FrameTable } from '../snapshot/segment.ts';
import type { Recording, TouchedRun } from '../snapshot/working-set.ts';
import { FetchGate } from './fetch-gate.ts';
import { framesInOrder, planAhead, planLater } from './fetch-plan.ts';
import { FileTree } from './file-tree.ts';
import { FrameCache } from './frame-cache.ts';
import { type FrameHoldings, type FrameReading, FrameSource } from './frame-source.ts';
import { mountFuse, unmountFuse, unmountStale } from './fuse-mount.ts';
import { encodeInvalidateEntry, rootNodeId } from './fuse-protocol.ts';
import { FuseSession } from './fuse-session.ts';
import { PagePusher } from './page-pusher.ts';
import {
  FramePageSource,
  type OnFetched,
  type PageSource,
  PlainPageSource,
  type Push,
} from './page-source.ts';
import type { ImageRef, PagerEvent, PagerStats, ServeFrom } from './pager-protocol.ts';
import { ServedFile } from './served-file.ts';

/** An image as its manifest has it, and what reads its frames. */
export interface LoadedImage {
  image: Image;
  frames: FrameTable;
  reader: FrameReading;
}

export interface PagerOptions {
  mountDir: string;
  load: (ref: ImageRef, manifestPath: string) => Promise<LoadedImage>;
  onEvent: (event: PagerEvent) => void;
  log: Log;
  limits?: Partial<PagerLimits>;
}

export interface PagerLimits {
  cacheBytes: number;
  /** Reads of the store at once. */
  maxConcurrentReads: number;
  readTimeoutMs: number;
  maxReadaheadBytes: number;
  /** What a fault fetches of the store: about what comes while the first byte of another read would be waited for. */
  aroundBytes: number;
  /** Frames that are fetched ahead go into the kernel's page cache, not only into ours. */
  push: boolean;
}

export const defaultLimits: PagerLimits = {
  cacheBytes: 64 * 1024 * 1024,
  maxConcurrentReads: 16,
  readTimeoutMs: 10_000,
  maxReadaheadBytes: 128 * 1024,
  aroundBytes: 256 * 1024,
  push: true,
};

/** Largest READ that we let the kernel send. */
const maxReadBytes = 1024 * 1024;
/** Reads that nobody waits for yet, such as the kernel's guesses. Whoever needs a page waits while there are more. */
const maxBackground = 1024;
/** Two keep the device busy while one answer is worked out; more gain nothing (docs/decisions/0006-pagefs.md). */
const readers = 2;
const mountTimeoutMs = 5_000;

interface Served {
  ref: ImageRef;
  file: ServedFile;
  nodeId: number;
  loaded: LoadedImage | undefined;
}

export class Pager {
  readonly #options: PagerOptions;
  readonly #limits: PagerLimits;
  readonly #tree = new FileTree();
  readonly #served = new Map<string, Served>();
  readonly #holdings: FrameHoldings;
  readonly #device: FileHandle;
  readonly #session: FuseSession;
  readonly #pusher: PagePusher;

  private constructor(options: PagerOptions, device: FileHandle) {
    this.#options = options;
    this.#limits = { ...defaultLimits, ...options.limits };
    this.#holdings = {
      cache: new FrameCache(this.#limits.cacheBytes),
      gate: new FetchGate(this.#limits.maxConcurrentReads),
      inFlight: new Map(),
      quarantined: new Map(),
    };
    this.#device = device;
    this.#pusher = new PagePusher(device.fd);
    this.#session = new FuseSession({
      fd: device.fd,
      handler: this.#tree,
      log: options.log,
      readers,
      limits: { maxReadaheadBytes: this.#limits.maxReadaheadBytes, maxReadBytes, maxBackground },
    });
  }

  /** Mounts, over whatever a dead pager left there. @throws ThawError `mount-failed`. */
  static async start(options: PagerOptions): Promise<Pager> {
    const stale = await unmountStale(options.mountDir);
    if (stale > 0)
      options.log.warn({ stale, mountDir: options.mountDir }, 'removed the mounts of a dead pager');
    const pager = new Pager(options, await mountFuse(options.mountDir));
    try {
      await withDeadline('the kernel’s first request', mountTimeoutMs, pager.#session.ready);
      return pager;
    } catch (error) {
      await pager.close();
      throw error;
    }
  }

  /** Settles when the mount is gone. */
  get ended(): Promise<'unmounted' | 'aborted'> {
    return this.#session.ended;
  }

  get opens(): number {
    return [...this.#served.keys()].reduce((sum, name) => sum + this.#tree.opensOf(name), 0);
  }

  /** @returns the path that a VMM opens. @throws ThawError `conflict` when it is served already. */
  async add(ref: ImageRef, from: ServeFrom, record = false): Promise<{ path: string; sizeBytes: number }> {
    const name = nameOf(ref);
    if (this.#served.has(name)) throw new ThawError('conflict', `${name} is already served`);
    const { source, loaded } = await this.#sourceOf(ref, from, record);
    const { onEvent } = this.#options;
    const file = new ServedFile({
      source,
      record,
      onGuess: (offsetBytes, sizeBytes) => {
        if (loaded && source instanceof FramePageSource)
          void fetchGuess(source, loaded, offsetBytes, sizeBytes);
      },
      onReadFailed: ({ code, message }) => onEvent({ ...ref, event: 'pages-failed', code, detail: message }),
      onWriteRefused: (pid) => onEvent({ ...ref, event: 'write-refused', pid }),
    });
    try {
      this.#served.set(name, { ref, file, loaded, nodeId: this.#tree.add(name, file) });
    } catch (error) {
      await source.close();
      throw error;
    }
    return { path: join(this.#options.mountDir, name), sizeBytes: source.sizeBytes };
  }

  /** @throws ThawError `conflict` while it is open. */
  async remove(ref: ImageRef): Promise<void> {
    const name = nameOf(ref);
    const served = this.#served.get(name);
    if (!served) return;
    this.#tree.remove(name);
    this.#served.delete(name);
    // The kernel knows the name for a day otherwise. ENOENT: it never asked for it.
    await this.#session.notify(encodeInvalidateEntry(rootNodeId, name)).catch(() => {});
    await served.file.source.close();
  }

  /** @param runs in the order of need. Resolves when all of it is here or has failed. */
  async prefetch(ref: ImageRef, runs: readonly TouchedRun[]): Promise<{ frames: number; failed: number }> {
    const { file, source, loaded, nodeId } = this.#framesOf(ref);
    file.knowsWorkingSet();
    const wanted = framesInOrder(loaded.image.extents, runs);
    const push: Push | undefined = this.#limits.push
      ? (places) => this.#pusher.push(nodeId, places)
      : undefined;
    const [{ failed, error }] = await Promise.all([
      source.fetchAhead(planAhead(loaded.frames, wanted), push),
      push?.(source.zerosIn(runs)),
    ]);
    // Not an event: nobody needed these bytes yet. Whoever does will ask, and be told.
    if (failed > 0)
      this.#options.log.warn({ ...ref, failed, err: error }, 'a part could not be fetched ahead');
    return { frames: wanted.length, failed };
  }

  /** Fetches in the background what the kept file lacks. @returns how many frames that is. @throws ThawError `no-space`. */
  complete(ref: ImageRef): number {
    const { source, loaded } = this.#framesOf(ref);
    // Nobody would ever hear that it is whole.
    if (source.keepFailure)
      throw new ThawError('no-space', `${nameOf(ref)} is not kept: ${source.keepFailure.message}`);
    const missing = source.missingFrames();
    void source.keepAhead(planLater(loaded.frames, missing)).then(({ failed, error }) => {
      if (failed === 0) return;
      const detail = `${failed} parts could not be fetched: ${(error as Error | undefined)?.message}`;
      this.#options.onEvent({ ...ref, event: 'keep-failed', detail });
    });
    return missing.length;
  }

  /** @throws ThawError `conflict` when nothing is recorded for it. */
  recording(ref: ImageRef): Recording {
    const recording = this.#servedAs(ref).file.recording();
    if (!recording) throw new ThawError('conflict', `${nameOf(ref)} is not recorded`);
    return recording;
  }

  stats(): PagerStats {
    const { cache, gate, inFlight, quarantined } = this.#holdings;
    return {
      files: [...this.#served].map(([name, { ref, file }]) => ({
        ...ref,
        ...file.counts,
        sizeBytes: file.sizeBytes,
        opens: this.#tree.opensOf(name),
        missingFrames: file.source instanceof FramePageSource ? file.source.missingFrames().length : 0,
      })),
      cacheBytes: cache.sizeBytes,
      fetchesInFlight: inFlight.size,
      fetchesWaiting: gate.waiting,
      quarantinedFrames: quarantined.size,
      residentBytes: process.memoryUsage.rss(),
    };
  }

  /** Files that are still open stay readable while this process lives. @returns whether the file system has ended. */
  async close(): Promise<boolean> {
    const inUse = this.opens > 0;
    const released = this.#session.ended.then(() => this.#release());
    await unmountFuse(this.#options.mountDir);
    if (!inUse) await released;
    return !inUse;
  }

  async #release(): Promise<void> {
    await this.#pusher.close();
    await this.#device.close();
    for (const { file } of this.#served.values()) await file.source.close();
  }

  async #sourceOf(
    ref: ImageRef,
    from: ServeFrom,
    record: boolean,
  ): Promise<{ source: PageSource; loaded: LoadedImage | undefined }> {
    if ('plainPath' in from) return { source: await openPlain(from.plainPath, from.far), loaded: undefined };
    const loaded = await this.#options.load(ref, from.manifestPath);
    const { onEvent } = this.#options;
    const { keepPath } = from;
    const source = await FramePageSource.open({
      image: loaded.image,
      openFrames: (onNeighbour) =>
        new FrameSource({
          frames: loaded.frames,
          reader: loaded.reader,
          holdings: this.#holdings,
          readTimeoutMs: this.#limits.readTimeoutMs,
          aroundBytes: this.#limits.aroundBytes,
          onQuarantined: (frame, detail) => onEvent({ ...ref, event: 'frame-quarantined', frame, detail }),
          onNeighbour,
        }),
      ...(keepPath === undefined ? {} : { keepPath }),
      onKept: (error) =>
        error
          ? onEvent({ ...ref, event: 'keep-failed', detail: error.message })
          : onEvent({ ...ref, event: 'kept', path: keepPath! }),
      ...(record || !this.#limits.push ? {} : { onFetched: (places) => this.#pushRest(ref, places) }),
    });
    return { source, loaded };
  }

  #servedAs(ref: ImageRef): Served {
    const served = this.#served.get(nameOf(ref));
    if (!served) throw new ThawError('template-not-found', `the pager does not serve ${nameOf(ref)}`);
    return served;
  }

  #framesOf(ref: ImageRef): Served & { source: FramePageSource; loaded: LoadedImage } {
    const { file, loaded, nodeId } = this.#servedAs(ref);
    if (!loaded || !(file.source instanceof FramePageSource))
      throw new ThawError('conflict', `${nameOf(ref)} is a plain file already`);
    return { ref, file, source: file.source, loaded, nodeId };
  }

  /** A frame's other pages: cheaper than being asked for them one by one. While touches are recorded they must be asked. */
  #pushRest(ref: ImageRef, places: Parameters<OnFetched>[0]): void {
    const served = this.#served.get(nameOf(ref));
    if (!served) return;
    this.#pusher
      .push(served.nodeId, places)
      .catch((error) => this.#options.log.debug({ err: error }, 'not pushed'));
  }
}

export const nameOf = ({ snapshotId, image }: ImageRef): string => `${snapshotId}.${image}`;

/** Failures are left to whoever really needs the bytes. */
async function fetchGuess(
  source: FramePageSource,
  { image, frames }: LoadedImage,
  offsetBytes: number,
  sizeBytes: number,
): Promise<void> {
  const page = Math.floor(offsetBytes / pageBytes);
  const run = { page, pageCount: pagesIn(offsetBytes + sizeBytes) - page };
  await source.keepAhead(planAhead(frames, framesInOrder(image.extents, [run])));
}

async function openPlain(path: string, far = false): Promise<PlainPageSource> {
  const file = await open(path, 'r').catch((error: Error) => {
    throw new ThawError('snapshot-damaged', error.message, { cause: error });
  });
  return new PlainPageSource(file, path, (await file.stat()).size, far);
}
