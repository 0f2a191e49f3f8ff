// Owns collection: segments that no manifest and no pin needs are removed after a grace period.
// Invariant: a segment that a manifest, a working set or a live pin names is never removed, whoever races with it.
import type { BlobStore, RequestOptions } from '../store/blob-store.ts';

export interface CollectOptions extends RequestOptions {
  /** Objects younger than this are left alone. */
  graceMs: number;
  dryRun?: boolean;
}

export interface Collected {
  segments: number;
  bytes: number;
  expiredPins: number;
  unfinishedUploads: number;
  /** Manifests that could not be verified: while there are any, nothing is removed. */
  unreadable: string[];
}

export declare function collect(
  store: BlobStore,
  clusterKey: Buffer,
  options: CollectOptions,
): Promise<Collected>;
