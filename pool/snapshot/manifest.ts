// Owns what a snapshot is made of: images, frames, segments, compatibility, lineage; and which of that is admissible.
// Refuses to own its bytes (manifest-codec.ts) and where it is kept. docs/snapshot-format.md is its reference.
// Invariant: a `Manifest` in memory has passed `checkManifest`: every index in it points at something that is there.
import type { Compatibility } from '../hypervisor/hypervisor.ts';
import type { ExtentTable } from './extents.ts';
import type { FrameTable } from './segment.ts';

/** Memory: offset = position in guest RAM. Disk: the guest's view of the whole writable disk, not a layer. Devices: the VMM's state, opaque. */
export const imageNames = ['memory', 'disk', 'devices'] as const;
export type ImageName = (typeof imageNames)[number];

export interface Image {
  /** Exact; the last page is filled up with zeros. */
  sizeBytes: number;
  extents: ExtentTable;
}

export interface SegmentRef {
  /** SHA-256 of the object's bytes, hex; names it. */
  sha256: string;
  sizeBytes: number;
}

export interface Manifest {
  snapshotId: string;
  /** Whose extents this one's began as. It may be gone: everything needed is in this manifest. */
  parentId: string | undefined;
  /** How many ancestors. */
  depth: number;
  createdAtMs: number;
  nonce: string;
  memoryMb: number;
  vcpus: number;
  /** Paths that a clone's runner answers once before it counts as warm; absent for snapshots without a runner. */
  prime: string[] | undefined;
  compatibility: Compatibility;
  images: Record<ImageName, Image>;
  frames: FrameTable;
  segments: SegmentRef[];
  /** Bytes of `segments` that this snapshot itself added when it was published. */
  addedBytes: number;
  /** Anything the capture wants to tell `inspect`: pause by stage in ms, dirty pages. At most 64 finite numbers. */
  facts: Record<string, number>;
}
