// Owns collection: segments that no manifest and no pin needs are removed after a grace period.
// Refuses to own when it runs. Invariant: a segment that a manifest or a live pin names is never removed, whoever races
// with it (see sweep-announcement.ts); while any manifest or pin cannot be verified, nothing is removed at all.
import { randomBytes } from 'node:crypto';
import { ThawError } from '../../shared/errors.ts';
import { allBlobs, type BlobInfo, type BlobStore, type RequestOptions } from '../store/blob-store.ts';
import { Catalogue } from './catalogue.ts';
import { Pins } from './pins.ts';
import type { ClusterKey } from './signed-object.ts';
import { nameIn, segmentsPrefix } from './store-keys.ts';
import { type Announcement, announce, stands, withdraw } from './sweep-announcement.ts';

export interface CollectOptions extends RequestOptions {
  /** Objects younger than this are left alone. */
  graceMs: number;
  dryRun?: boolean;
  /** For tests of what races with a collection: called before the announcement, after it, and before the first removal. */
  onStep?: (step: 'found' | 'announced' | 'checked') => Promise<void> | void;
}

export interface Collected {
  segments: number;
  bytes: number;
  expiredPins: string[];
  unfinishedUploads: number;
  /** Snapshots whose manifest could not be verified: while there are any, nothing is removed. */
  unreadable: string[];
}

/** One announcement: bounds its object, and how long a publisher may have to wait. */
const maxSweep = 5_000;
const sweepMs = 120_000;
const removalsAtOnce = 16;
/** Between two looks at whether the announcement still stands. */
const batchSize = 256;

/** @throws ThawError `conflict` when another collection is under way. */
export async function collect(
  store: BlobStore,
  clusterKey: ClusterKey,
  options: CollectOptions,
): Promise<Collected> {
  const { graceMs, dryRun = false, onStep = () => {} } = options;
  const collection = new Collection(store, clusterKey, options);
  const collected: Collected = {
    segments: 0,
    bytes: 0,
    expiredPins: collection.expiredPins,
    unfinishedUploads: dryRun ? 0 : await store.sweepUnfinished(graceMs, options),
    unreadable: [],
  };
  const old = await collection.segmentsOlderThan(graceMs);
  const needed = await collection.needed();
  collected.unreadable = needed.unreadable;
  const candidates = old.filter(({ key }) => !needed.segments.has(nameIn(key))).slice(0, maxSweep);
  await onStep('found');
  if (candidates.length === 0 || needed.unreadable.length > 0) return collected;
  const removed = dryRun ? candidates : await collection.sweep(candidates, onStep);
  collected.segments = removed.length;
  collected.bytes = removed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  return collected;
}

class Collection {
  readonly expiredPins: string[] = [];
  readonly #store: BlobStore;
  readonly #key: ClusterKey;
  readonly #options: RequestOptions;
  readonly #pins: Pins;
  readonly #catalogue: Catalogue;

  constructor(store: BlobStore, clusterKey: ClusterKey, { signal, timeoutMs }: RequestOptions) {
    this.#store = store;
    this.#key = clusterKey;
    this.#options = { ...(signal ? { signal } : {}), ...(timeoutMs ? { timeoutMs } : {}) };
    this.#pins = new Pins({ store, clusterKey });
    this.#catalogue = new Catalogue({ store, clusterKey });
  }

  async segmentsOlderThan(graceMs: number): Promise<BlobInfo[]> {
    const limitMs = Date.now() - graceMs;
    const old: BlobInfo[] = [];
    for await (const blob of allBlobs(this.#store, segmentsPrefix, this.#options))
      if (blob.modifiedAtMs <= limitMs) old.push(blob);
    return old;
  }

  /** Pins first: a publisher lets its pin go only when its manifest is there. */
  async needed(): Promise<{ segments: Set<string>; unreadable: string[] }> {
    const segments = await this.#pins.pinned(this.#options, (owner) => this.expiredPins.push(owner));
    const { snapshots, unreadable } = await this.#catalogue.list(this.#options);
    for (const snapshot of snapshots) for (const { sha256 } of snapshot.segments) segments.add(sha256);
    return { segments, unreadable: unreadable.map(({ snapshotId }) => snapshotId) };
  }

  async sweep(
    candidates: readonly BlobInfo[],
    onStep: NonNullable<CollectOptions['onStep']>,
  ): Promise<BlobInfo[]> {
    const announcement: Announcement = {
      id: randomBytes(8).toString('hex'),
      endsAtMs: Date.now() + sweepMs,
      segments: candidates.map(({ key }) => nameIn(key)),
    };
    if (!(await announce(this.#store, this.#key, announcement, this.#options)))
      throw new ThawError('conflict', 'another collection is under way');
    try {
      await onStep('announced');
      const needed = await this.needed();
      await onStep('checked');
      if (needed.unreadable.length > 0) return [];
      const unneeded = candidates.filter(({ key }) => !needed.segments.has(nameIn(key)));
      return await this.#remove(unneeded, announcement);
    } finally {
      await withdraw(this.#store, this.#key, announcement, this.#options);
    }
  }

  async #remove(blobs: readonly BlobInfo[], announcement: Announcement): Promise<BlobInfo[]> {
    const removed: BlobInfo[] = [];
    for (let at = 0; at < blobs.length; at += batchSize) {
      if (!(await stands(this.#store, this.#key, announcement, this.#options))) return removed;
      const batch = blobs.slice(at, at + batchSize);
      const lane = async () => {
        for (let blob = batch.pop(); blob; blob = batch.pop()) {
          await this.#store.delete(blob.key, this.#options);
          removed.push(blob);
        }
      };
      await Promise.all(Array.from({ length: removalsAtOnce }, lane));
    }
    return removed;
  }
}
