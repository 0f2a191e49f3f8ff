// Owns the words between snapshots that are not whole on this node and whoever serves their memory meanwhile
// (pagefs/paged-memory.ts). Invariant: a lease is released once; while it is held its path can be mapped.
import type { ThawError } from '../../shared/errors.ts';
import type { SnapshotRecord } from './record.ts';

/** A VM's hold on a page file that a pager serves. */
export interface PagedLease {
  /** For the VMM. */
  readonly path: string;
  /** Why pages could not be had; undefined while all is well. */
  readonly failure: ThawError | undefined;
  /** Called when the VM that maps it must end: a page could not be had, or the pager is lost. */
  onFailure(listener: (failure: ThawError) => void): void;
  /** The VM has answered: what it touched is its working set, and the rest may be fetched. */
  answered(): void;
  release(): void;
}

/** A snapshot's memory as whoever serves it needs to know it. */
export interface PagedImage {
  snapshotId: string;
  memoryMb: number;
  /** Of the signed manifest; read when it is first served. */
  manifestPath: string;
}

export interface PagedSnapshots {
  /** A clone will be asked for within seconds: its pages are fetched meanwhile. Failures show at `lease`. */
  expect(image: PagedImage): void;
  /** @throws ThawError `mount-failed` | `pager-lost` | `snapshot-damaged` | `no-space`. */
  lease(record: SnapshotRecord): Promise<PagedLease>;
  /** Fetches all of it. @returns a plain file to be linked. @throws ThawError as `lease`, `store-unavailable`, `deadline-exceeded`. */
  keep(record: SnapshotRecord): Promise<string>;
}
