// Owns what one node has to do with the store: its snapshots go there, those of others come from there, working sets are
// shared there, what running clones need is pinned, and what nobody needs is collected.
// Refuses to own each of these in itself (publish.ts, arrival.ts, pins.ts, gc.ts) and serving memory (pagefs).
// Invariant: nothing on a request's path waits for the store, but for the snapshot that is not here yet.
import { randomBytes } from 'node:crypto';
import { ThawError } from '../../shared/errors.ts';
import { snapshotIdPattern } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import type { Paths } from '../host/paths.ts';
import type { Compatibility } from '../hypervisor/hypervisor.ts';
import type { BlobStore } from '../store/blob-store.ts';
import { bringSnapshot } from './arrival.ts';
import { Catalogue } from './catalogue.ts';
import { pageBytes } from './extents.ts';
import { storeTier } from './frame-reader.ts';
import { collect } from './gc.ts';
import type { SnapshotLibrary } from './library.ts';
import type { SnapshotSummary } from './lineage.ts';
import { localCaptureOf } from './local-capture.ts';
import type { Manifest } from './manifest.ts';
import type { PagedSnapshots } from './paged-lease.ts';
import { type Pin, Pins } from './pins.ts';
import { Publisher } from './publish.ts';
import { PublishQueue } from './publish-queue.ts';
import { differences, type SnapshotRecord } from './record.ts';
import { getIfThere } from './signed-json.ts';
import type { ClusterKey } from './signed-object.ts';
import { workingSetKey } from './store-keys.ts';
import { checkSegments } from './upload.ts';
import { type Verification, verifySnapshot } from './verify.ts';
import {
  decodeWorkingSet,
  encodeWorkingSet,
  mergedOrder,
  type Recording,
  type WorkingSet,
  withMisses,
  withRecording,
} from './working-set.ts';

export interface StoredSnapshotsOptions {
  store: BlobStore;
  clusterKey: ClusterKey;
  library: SnapshotLibrary;
  paths: Paths;
  log: Log;
  blankDiskPath: string;
  /** Of this node: what does not fit is not fetched. Absent: whoever restores it finds out. */
  compatibility?(): Promise<Compatibility>;
  /** Absent: the memory of a snapshot is fetched before it is restored. */
  paged?: PagedSnapshots | undefined;
  /** What a clone of a snapshot of this node touches first; absent where nothing can record it. `far`: with pages that take their time. */
  rehearse?(record: SnapshotRecord, far: boolean, signal: AbortSignal): Promise<Recording>;
  /** How long a pin holds; it is renewed three times meanwhile. */
  pinMs?: number;
}

/** Segments that this node needs; without a pin while the store did not take it. */
interface Held {
  segments: string[];
  pin: Pin | undefined;
}

type Memory = Pick<SnapshotRecord, 'snapshotId' | 'memoryMb'>;

/** A crashed node's pins are in the way of a collection for no longer than this. */
const defaultPinMs = 600_000;
const renewalsPerPin = 3;
const collectEveryMs = 3_600_000;
/** Longer than any publish and any restore. */
const collectGraceMs = 24 * 3_600_000;
/** One is what that clone happened to do; what a fourth would add is near what three did. Two of them as it is elsewhere. */
const rehearsals = [false, true, true];

export class StoredSnapshots {
  readonly #options: StoredSnapshotsOptions;
  readonly #catalogue: Catalogue;
  readonly #pins: Pins;
  readonly #publisher: Publisher;
  readonly #queue: PublishQueue;
  readonly #arriving = new Map<string, Promise<SnapshotRecord | undefined>>();
  /** Of what is arriving: asked for beside the manifest, so that its pages need not wait for one more answer. */
  readonly #workingSets = new Map<string, Promise<Buffer | undefined>>();
  /** Of snapshots whose memory is not here yet. */
  readonly #pinned = new Map<string, Held>();
  readonly #pinMs: number;
  readonly #node = `node-${randomBytes(6).toString('hex')}`;
  readonly #timers: NodeJS.Timeout[] = [];

  private constructor(options: StoredSnapshotsOptions, publisher: Publisher) {
    this.#options = options;
    this.#publisher = publisher;
    const { log, pinMs = defaultPinMs } = options;
    this.#pinMs = pinMs;
    this.#catalogue = new Catalogue({
      ...options,
      onRefused: (snapshotId, error) => log.error({ err: error, snapshotId }, 'a manifest was refused'),
    });
    this.#pins = new Pins(options);
    this.#queue = new PublishQueue({ log, publish: (id, signal) => this.#publish(id, signal) });
  }

  static async open(options: StoredSnapshotsOptions): Promise<StoredSnapshots> {
    const { store, clusterKey, paths } = options;
    const publisher = await Publisher.open({ store, clusterKey, spoolDir: paths.spoolDir });
    return new StoredSnapshots(options, publisher);
  }

  /** Publishes what an earlier run did not, pins what it left in the store; does not wait for either. */
  start(): void {
    void this.#catchUp().catch((error) =>
      this.#options.log.warn({ err: error }, 'the store was not asked what it has'),
    );
    this.#timers.push(setInterval(() => void this.#renewPins(), this.#pinMs / renewalsPerPin).unref());
    this.#timers.push(setInterval(() => void this.#collect(), collectEveryMs).unref());
  }

  async close(): Promise<void> {
    for (const timer of this.#timers) clearInterval(timer);
    await this.#queue.close();
    await this.#publisher.close();
    await Promise.all([...this.#pinned.keys()].map((snapshotId) => this.unpin(snapshotId)));
    await this.#options.store.close();
  }

  added(record: SnapshotRecord): void {
    this.#queue.add(record);
  }

  stateOf(snapshotId: string): ReturnType<PublishQueue['stateOf']> {
    return this.#queue.stateOf(snapshotId);
  }

  get publishing(): string | undefined {
    return this.#queue.current;
  }

  get backlog(): PublishQueue['backlog'] {
    return this.#queue.backlog;
  }

  settled(): Promise<void> {
    return this.#queue.settled();
  }

  /** @returns undefined when it is not in the store. @throws ThawError as arrival.ts, and store errors. */
  bring(snapshotId: string): Promise<SnapshotRecord | undefined> {
    const running = this.#arriving.get(snapshotId);
    if (running) return running;
    const arriving = this.#bring(snapshotId).finally(() => {
      this.#arriving.delete(snapshotId);
      this.#workingSets.delete(snapshotId);
    });
    this.#arriving.set(snapshotId, arriving);
    return arriving;
  }

  async #bring(snapshotId: string): Promise<SnapshotRecord | undefined> {
    const { paged, log, library } = this.#options;
    // It may have come since its caller looked.
    const here = await library.here(snapshotId);
    if (here) return here;
    if (paged) this.#workingSets.set(snapshotId, this.#workingSetObject(snapshotId));
    const manifest = await this.#catalogue.find(snapshotId);
    if (!manifest) return undefined;
    await this.#refuseIncompatible(manifest);
    const { memoryMb } = manifest;
    if (paged) void this.#pin(manifest);
    else metrics.fallbacks.inc({ kind: 'memory-fetched-first' });
    const record = await bringSnapshot(manifest, {
      ...this.#options,
      paged: paged !== undefined,
      onManifest: (manifestPath) => paged?.expect({ snapshotId, memoryMb, manifestPath }),
    }).catch((error) => {
      void this.unpin(snapshotId);
      throw error;
    });
    this.#queue.markStored(snapshotId);
    log.info({ snapshotId, form: record.form }, 'a snapshot came from the store');
    return record;
  }

  /** Before anything of it is fetched. */
  async #refuseIncompatible({ snapshotId, compatibility }: Manifest): Promise<void> {
    const ours = await this.#options.compatibility?.();
    const difference = ours && differences(compatibility, ours);
    if (difference)
      throw new ThawError('incompatible', `${snapshotId} was made by something else: ${difference}`);
  }

  /** Every byte of this very snapshot, as far as a store tells without reading it: what this node has of it may go. @throws store errors. */
  async hasAllOf({ snapshotId, nonce }: Pick<SnapshotRecord, 'snapshotId' | 'nonce'>): Promise<boolean> {
    if (this.#queue.stateOf(snapshotId) !== 'stored') return false;
    try {
      const manifest = await this.#catalogue.find(snapshotId);
      // Two nodes that booted one template have different memory under one id.
      if (manifest?.nonce !== nonce) return false;
      await checkSegments(this.#options.store, manifest.segments, {});
      return true;
    } catch (error) {
      if (error instanceof ThawError && error.code === 'snapshot-damaged') return false;
      throw error;
    }
  }

  /** By id or name; of several of one name the newest. @returns undefined when the store has none. @throws store errors. */
  async find(idOrName: string): Promise<SnapshotSummary | undefined> {
    return (await this.list()).find((summary) => isCalled(summary, idOrName));
  }

  /** Newest first. */
  async list(): Promise<SnapshotSummary[]> {
    const { snapshots } = await this.#catalogue.list();
    return snapshots;
  }

  load(snapshotId: string): Promise<Manifest> {
    return this.#catalogue.load(snapshotId);
  }

  /** Every frame of it. @returns undefined when it is not in the store. @throws ThawError `snapshot-damaged` for its manifest, and store errors. */
  async verify(snapshotId: string): Promise<Verification | undefined> {
    const manifest = await this.#catalogue.find(snapshotId);
    return manifest && (await verifySnapshot(manifest, storeTier(this.#options.store)));
  }

  /** Its memory is here, or it is gone: others may collect what it needed. */
  async unpin(snapshotId: string): Promise<void> {
    const held = this.#pinned.get(snapshotId);
    this.#pinned.delete(snapshotId);
    // One that stays runs out by itself.
    await held?.pin
      ?.release()
      .catch((error) => this.#options.log.warn({ err: error, snapshotId }, 'a pin was not released'));
  }

  /** @returns false when the store had none. Its segments go with a collection. */
  async remove(snapshotId: string): Promise<boolean> {
    await this.#queue.remove(snapshotId);
    const there = await this.#catalogue.has(snapshotId);
    if (there) await this.#catalogue.remove(snapshotId);
    // Whoever found its manifest before is done with it: nothing of it comes after its removal.
    await this.#arriving.get(snapshotId)?.catch(() => {});
    await this.unpin(snapshotId);
    return there;
  }

  async workingSetOf({ snapshotId, memoryMb }: Memory): Promise<WorkingSet | undefined> {
    const imagePages = (memoryMb * 1024 * 1024) / pageBytes;
    try {
      const object = await (this.#workingSets.get(snapshotId) ?? this.#workingSetObject(snapshotId));
      return object && decodeWorkingSet(object, imagePages);
    } catch (error) {
      // A hint: without it the restore is slower.
      this.#options.log.warn({ err: error, snapshotId }, 'no working set');
      return undefined;
    }
  }

  #workingSetObject(snapshotId: string): Promise<Buffer | undefined> {
    const object = getIfThere(this.#options.store, workingSetKey(snapshotId), {});
    // It may fail before anybody waits for it, and nobody need.
    object.catch(() => {});
    return object;
  }

  async learnt(memory: Memory, recordings: readonly Recording[]): Promise<void> {
    const imagePages = (memory.memoryMb * 1024 * 1024) / pageBytes;
    const known = (await this.workingSetOf(memory)) ?? { imagePages, recordings: [] };
    const set = recordings.reduce(withRecording, known);
    await this.#options.store.replace(workingSetKey(memory.snapshotId), encodeWorkingSet(set));
  }

  /** What a clone needed that its working set did not say in time. */
  async missed(memory: Memory, misses: Recording): Promise<void> {
    const known = await this.workingSetOf(memory);
    const set = known && withMisses(known, misses);
    if (set) await this.#options.store.replace(workingSetKey(memory.snapshotId), encodeWorkingSet(set));
  }

  async #publish(snapshotId: string, signal: AbortSignal): Promise<void> {
    const { library } = this.#options;
    if (await this.#catalogue.has(snapshotId, { signal })) return;
    const record = await library.record(snapshotId);
    const parent = await this.#storedParentOf(record, signal);
    const capture = await localCaptureOf(record, parent);
    const recordings = await this.#rehearse(record, signal);
    const imagePages = capture.memory.sizeBytes / pageBytes;
    const memory = { ...capture.memory, first: stretchesOf(mergedOrder({ imagePages, recordings })) };
    const { uploadedBytes, pages } = await this.#publisher.publish({ ...capture, memory }, { signal });
    if (recordings.length > 0) await this.learnt(record, recordings);
    this.#options.log.info({ snapshotId, uploadedBytes, pages }, 'a snapshot is in the store');
  }

  /** What the store has of this node's own making: a template may have been built by others, too, under the same id. */
  async #storedParentOf(record: SnapshotRecord, signal: AbortSignal): Promise<SnapshotRecord | undefined> {
    const parent = record.parent === undefined ? undefined : await this.#options.library.here(record.parent);
    if (!parent || parent.form === 'paged') return undefined;
    const stored = await this.#catalogue.find(parent.snapshotId, { signal });
    return stored?.nonce === parent.nonce ? parent : undefined;
  }

  /** A sandbox is never run for this: it would do again what its user did once. */
  async #rehearse(record: SnapshotRecord, signal: AbortSignal): Promise<Recording[]> {
    const { rehearse, log } = this.#options;
    if (!rehearse || record.kind === 'sandbox' || record.form !== 'whole') return [];
    const recordings: Recording[] = [];
    try {
      for (const far of rehearsals) recordings.push(await rehearse(record, far, signal));
    } catch (error) {
      signal.throwIfAborted();
      log.warn({ err: error, snapshotId: record.snapshotId }, 'published without a working set');
    }
    return recordings;
  }

  async #catchUp(): Promise<void> {
    const stored = new Set((await this.list()).map(({ snapshotId }) => snapshotId));
    const records = await this.#options.library.list();
    // Oldest first: parents before their children.
    for (const record of records.reverse()) {
      if (!stored.has(record.snapshotId)) this.#queue.add(record);
      else {
        this.#queue.markStored(record.snapshotId);
        if (record.form === 'paged') await this.#pin(await this.load(record.snapshotId));
      }
    }
  }

  /** Not waited for: until somebody removes the snapshot its own manifest keeps its segments. */
  async #pin({ snapshotId, segments }: Manifest): Promise<void> {
    const held: Held = { segments: segments.map(({ sha256 }) => sha256), pin: undefined };
    this.#pinned.set(snapshotId, held);
    await this.#renew(snapshotId, held);
  }

  async #renewPins(): Promise<void> {
    for (const [snapshotId, held] of this.#pinned) await this.#renew(snapshotId, held);
  }

  /** One that could not be taken, or ran out while the store did not answer, is taken at the next turn. */
  async #renew(snapshotId: string, held: Held): Promise<void> {
    try {
      if (held.pin) await held.pin.renew();
      else held.pin = await this.#pins.take(`${this.#node}-${snapshotId}`, held.segments, this.#pinMs);
      if (this.#pinned.get(snapshotId) !== held) await held.pin.release();
    } catch (error) {
      if (error instanceof ThawError && error.code === 'conflict') held.pin = undefined;
      this.#options.log.warn({ err: error, snapshotId }, 'segments in use are not pinned');
    }
  }

  async #collect(): Promise<void> {
    const { store, clusterKey, log } = this.#options;
    try {
      const collected = await collect(store, clusterKey, { graceMs: collectGraceMs });
      log.info(collected, 'collected what no snapshot needs');
    } catch (error) {
      // Another node is at it: once is enough.
      if (!(error instanceof ThawError && error.code === 'conflict'))
        log.warn({ err: error }, 'nothing was collected');
    }
  }
}

/** What has the form of an id is no name. */
export const isCalled = (
  { snapshotId, names }: { snapshotId: string; names: readonly string[] },
  idOrName: string,
): boolean => (snapshotIdPattern.test(idOrName) ? snapshotId === idOrName : names.includes(idOrName));

const stretchesOf = (runs: Recording) =>
  runs
    .map(({ page, pageCount }) => ({ offsetBytes: page * pageBytes, sizeBytes: pageCount * pageBytes }))
    .sort((a, b) => a.offsetBytes - b.offsetBytes);
