// Owns pins: leases that keep segments from collection while a publish or a running clone needs them.
// Invariant: a pin is in the store before its owner relies on it, and runs out by itself when its owner dies.
import type { BlobStore, RequestOptions } from '../store/blob-store.ts';

export interface Pin {
  /** Call well before `ttlMs` has passed. @throws when the pin has run out: segments may be gone. */
  renew(options?: RequestOptions): Promise<void>;
  release(options?: RequestOptions): Promise<void>;
}

export declare class Pins {
  constructor(options: { store: BlobStore; clusterKey: Buffer });
  /** @param owner a vm id, or `publish-` and a snapshot id; one pin per owner. Waits out a collection under way of these segments. */
  take(owner: string, segments: readonly string[], ttlMs: number, options?: RequestOptions): Promise<Pin>;
}
