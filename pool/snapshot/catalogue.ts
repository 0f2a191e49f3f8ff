// Owns the snapshots of a store as a whole: load, list, lineage, removal; what a reader of snapshots starts from.
// Refuses to own publishing and collection. Invariant: what it returns was verified under the cluster key.
import type { BlobStore, RequestOptions } from '../store/blob-store.ts';
import type { Manifest, SegmentRef } from './manifest.ts';

/** One line of `snapshot ls`. */
export interface SnapshotSummary {
  snapshotId: string;
  parentId: string | undefined;
  depth: number;
  createdAtMs: number;
  memoryMb: number;
  vcpus: number;
  compatibilityKey: string;
  /** Bytes of all segments it needs. */
  storedBytes: number;
  /** Bytes of the segments that no other listed snapshot needs: what removing it would free. */
  uniqueBytes: number;
  segments: SegmentRef[];
  facts: Record<string, number>;
}

export declare class Catalogue {
  constructor(options: { store: BlobStore; clusterKey: Buffer });
  /** @throws ThawError `template-not-found` | `snapshot-damaged` | store errors. */
  load(snapshotId: string, options?: RequestOptions): Promise<Manifest>;
  has(snapshotId: string, options?: RequestOptions): Promise<boolean>;
  /** Newest first. Thousands in under 100 ms. */
  list(options?: RequestOptions): Promise<SnapshotSummary[]>;
  /** The manifest goes; its segments go with the next collection that finds nobody needs them. */
  remove(snapshotId: string, options?: RequestOptions): Promise<void>;
}
