// Owns the snapshots of a store as a whole: load, list, lineage, removal; what a reader of snapshots starts from.
// Refuses to own publishing and collection. Invariant: what it returns was verified under the cluster key.
import { ThawError } from '../../shared/errors.ts';
import { type BlobInfo, type BlobStore, type RequestOptions, StoreError } from '../store/blob-store.ts';
import {
  decodeIndex,
  encodeIndex,
  entryOf,
  isOf,
  type LineageEntry,
  type SnapshotSummary,
  summariesOf,
} from './lineage.ts';
import type { Manifest } from './manifest.ts';
import { decodeManifest } from './manifest-codec.ts';
import { getIfThere } from './signed-json.ts';
import type { ClusterKey } from './signed-object.ts';
import { lineageIndexKey, manifestKey, manifestsPrefix, nameIn, workingSetKey } from './store-keys.ts';

export interface CatalogueOptions {
  store: BlobStore;
  clusterKey: ClusterKey;
  /** Somebody edited or swapped a manifest, or it decayed: an event for the audit log. */
  onRefused?: (snapshotId: string, error: ThawError) => void;
}

export interface ListedSnapshots {
  /** Newest first. */
  snapshots: SnapshotSummary[];
  /** Manifests that could not be verified. */
  unreadable: { snapshotId: string; error: ThawError }[];
}

const loadsAtOnce = 16;
/** The index is written anew when this many entries were not in it. */
const indexLag = 16;

export class Catalogue {
  readonly #store: BlobStore;
  readonly #key: ClusterKey;
  readonly #onRefused: (snapshotId: string, error: ThawError) => void;
  #entries = new Map<string, LineageEntry>();
  #indexWasRead = false;

  constructor({ store, clusterKey, onRefused = () => {} }: CatalogueOptions) {
    this.#store = store;
    this.#key = clusterKey;
    this.#onRefused = onRefused;
  }

  /** @throws ThawError `template-not-found` | `snapshot-damaged` | store errors. */
  async load(snapshotId: string, options: RequestOptions = {}): Promise<Manifest> {
    const manifest = await this.find(snapshotId, options);
    if (manifest) return manifest;
    throw new ThawError('template-not-found', `no snapshot ${snapshotId} in ${this.#store.url}`);
  }

  /** As `load`; undefined when there is no such snapshot. */
  async find(snapshotId: string, options: RequestOptions = {}): Promise<Manifest | undefined> {
    const object = await getIfThere(this.#store, manifestKey(snapshotId), options);
    if (!object) return undefined;
    try {
      return decodeManifest(object, snapshotId, this.#key);
    } catch (error) {
      if (error instanceof ThawError) this.#onRefused(snapshotId, error);
      throw error;
    }
  }

  async has(snapshotId: string, options: RequestOptions = {}): Promise<boolean> {
    return (await this.#store.head(manifestKey(snapshotId), options)) !== undefined;
  }

  /** Thousands in under 100 ms: one index object, one listing, and the few manifests that are newer than the index. */
  async list(options: RequestOptions = {}): Promise<ListedSnapshots> {
    const [objects] = await Promise.all([this.#manifests(options), this.#readIndex(options)]);
    const known = new Map<string, LineageEntry>();
    const unknown: BlobInfo[] = [];
    for (const object of objects) {
      const snapshotId = nameIn(object.key);
      const entry = this.#entries.get(snapshotId);
      if (entry && isOf(entry, object)) known.set(snapshotId, entry);
      else unknown.push(object);
    }
    const unreadable = await this.#loadEntries(unknown, known, options);
    this.#entries = known;
    const snapshots = summariesOf([...known.values()]);
    if (unknown.length - unreadable.length >= indexLag) await this.#writeIndex(options);
    return { snapshots, unreadable };
  }

  /** The manifest goes; its segments go with the next collection that finds nobody needs them. */
  async remove(snapshotId: string, options: RequestOptions = {}): Promise<void> {
    await this.#store.delete(manifestKey(snapshotId), options);
    await this.#store.delete(workingSetKey(snapshotId), options);
    this.#entries.delete(snapshotId);
  }

  async #manifests(options: RequestOptions): Promise<BlobInfo[]> {
    const objects: BlobInfo[] = [];
    for (let after: string | undefined; ; ) {
      const page = await this.#store.list(manifestsPrefix, { ...options, ...(after ? { after } : {}) });
      objects.push(...page.entries);
      if (page.next === undefined) return objects;
      after = page.next;
    }
  }

  async #readIndex(options: RequestOptions): Promise<void> {
    if (this.#indexWasRead) return;
    const object = await getIfThere(this.#store, lineageIndexKey, options);
    this.#indexWasRead = true;
    if (!object) return;
    try {
      for (const entry of decodeIndex(object, this.#key)) this.#entries.set(entry.snapshotId, entry);
    } catch (error) {
      // Only a shortcut: the manifests are read instead, and the next writer mends it.
      this.#onRefused('lineage index', error as ThawError);
    }
  }

  async #loadEntries(
    objects: readonly BlobInfo[],
    into: Map<string, LineageEntry>,
    options: RequestOptions,
  ): Promise<ListedSnapshots['unreadable']> {
    const unreadable: ListedSnapshots['unreadable'] = [];
    const queue = [...objects];
    const lane = async () => {
      for (let object = queue.pop(); object; object = queue.pop()) {
        const snapshotId = nameIn(object.key);
        try {
          into.set(snapshotId, entryOf(await this.load(snapshotId, options), object));
        } catch (error) {
          if (!(error instanceof ThawError)) throw error;
          // Removed since the listing.
          if (error.code === 'template-not-found') continue;
          if (error.code !== 'snapshot-damaged' && error.code !== 'bad-request') throw error;
          unreadable.push({ snapshotId, error });
        }
      }
    };
    await Promise.all(Array.from({ length: loadsAtOnce }, lane));
    return unreadable;
  }

  /** Of several writers at once the last one counts; what it did not know is read from manifests until the next. */
  async #writeIndex(options: RequestOptions): Promise<void> {
    try {
      await this.#store.replace(
        lineageIndexKey,
        encodeIndex([...this.#entries.values()], this.#key),
        options,
      );
    } catch (error) {
      // A store that takes no writes can still be listed.
      if (!(error instanceof StoreError)) throw error;
    }
  }
}
