// Owns what a snapshot is made of: images, frames, segments, compatibility, lineage; and which of that is admissible.
// Refuses to own its bytes (manifest-codec.ts) and where it is kept. docs/snapshot-format.md is its reference.
// Invariant: a `Manifest` in memory has passed `checkManifest`: every index in it points at something that is there.
import { createHash } from 'node:crypto';
import { type Static, type TSchema, Type } from 'typebox';
import { Value } from 'typebox/value';
import { ThawError } from '../../shared/errors.ts';
import { snapshotIdPattern } from '../../shared/ids.ts';
import type { Compatibility } from '../hypervisor/hypervisor.ts';
import { checkExtents, type ExtentTable, pagesIn } from './extents.ts';
import { checkFrames, type FrameTable, maxSegmentBytes } from './segment.ts';
import { sha256Pattern } from './store-keys.ts';

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

/** Template: booted. Function: built in a copy of one. Sandbox: captured from a running VM. */
export const snapshotKind = Type.Union([
  Type.Literal('template'),
  Type.Literal('function'),
  Type.Literal('sandbox'),
]);
export type SnapshotKind = Static<typeof snapshotKind>;

/** What a snapshot is called by people and programs, the same on every node. */
export interface SnapshotTitle {
  kind: SnapshotKind;
  names: string[];
  /** Of a sandbox's snapshot: whose memory it is, in the caller's words. */
  source: string | undefined;
}

export interface Manifest extends SnapshotTitle {
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
  /** Bytes of `segments` that this snapshot itself made when it was published. */
  addedBytes: number;
  /** Anything the capture wants to tell `inspect`: pause by stage in ms, dirty pages. At most 64 finite numbers. */
  facts: Record<string, number>;
}

/** Bounds against a manifest that is wrong although it is signed: nothing is sized by what it claims beyond these. */
export const limits = {
  depth: 10_000,
  segments: 65_536,
  facts: 64,
  names: 64,
  primePaths: 64,
  memoryMb: 1 << 20,
  diskBytes: 2 ** 42,
  devicesBytes: 64 * 1024 * 1024,
} as const;

/** A segment is closed when it has passed its size: what was added last may stand over it. */
const maxStoredSegmentBytes = 2 * maxSegmentBytes;

const count = (maximum: number, minimum = 0) => Type.Integer({ minimum, maximum });
const shortText = Type.String({ maxLength: 1024 });
const optional = <S extends TSchema>(schema: S) => Type.Union([Type.Undefined(), schema]);
const imageSize = (maximum: number) => Type.Object({ sizeBytes: count(maximum), extents: Type.Object({}) });

const scalarsSchema = Type.Object({
  snapshotId: Type.String({ pattern: snapshotIdPattern.source }),
  parentId: optional(Type.String({ pattern: snapshotIdPattern.source })),
  kind: snapshotKind,
  names: Type.Array(shortText, { maxItems: limits.names }),
  source: optional(shortText),
  depth: count(limits.depth),
  createdAtMs: count(Number.MAX_SAFE_INTEGER),
  nonce: Type.String({ pattern: '^[0-9a-f]{32}$' }),
  memoryMb: count(limits.memoryMb, 1),
  vcpus: count(1024, 1),
  prime: optional(Type.Array(shortText, { maxItems: limits.primePaths })),
  compatibility: Type.Object(
    {
      hypervisor: shortText,
      hypervisorVersion: shortText,
      machine: shortText,
      cpu: shortText,
      imageDigest: shortText,
    },
    { additionalProperties: false },
  ),
  images: Type.Object(
    {
      memory: imageSize(limits.memoryMb * 1024 * 1024),
      disk: imageSize(limits.diskBytes),
      devices: imageSize(limits.devicesBytes),
    },
    { additionalProperties: false },
  ),
  segments: Type.Array(
    Type.Object(
      { sha256: Type.String({ pattern: sha256Pattern.source }), sizeBytes: count(maxStoredSegmentBytes, 1) },
      { additionalProperties: false },
    ),
    { maxItems: limits.segments },
  ),
  addedBytes: count(Number.MAX_SAFE_INTEGER),
  facts: Type.Record(Type.String({ pattern: '^[a-zA-Z][a-zA-Z0-9.]{0,63}$' }), Type.Number(), {
    maxProperties: limits.facts,
  }),
});

/** @throws ThawError `snapshot-damaged` with what is wrong. */
export function checkManifest(manifest: Manifest): void {
  const [error] = Value.Errors(scalarsSchema, manifest);
  if (error)
    throw new ThawError('snapshot-damaged', `manifest: ${error.instancePath || '/'} ${error.message}`);
  const { images, memoryMb, segments, frames, parentId, depth } = manifest;
  const refuse = (why: string) => {
    throw new ThawError('snapshot-damaged', `manifest: ${why}`);
  };
  if (images.memory.sizeBytes !== memoryMb * 1024 * 1024) refuse('its memory is not of the guest’s size');
  if (new Set(segments.map(({ sha256 }) => sha256)).size !== segments.length) refuse('a segment twice');
  if (Object.values(manifest.facts).some((value) => !Number.isFinite(value))) refuse('a fact is no number');
  if ((parentId === undefined) !== (depth === 0)) refuse('depth and parent do not fit');
  checkFrames(
    frames,
    segments.map(({ sizeBytes }) => sizeBytes),
  );
  const framePages = (frame: number) => frames.pageCount[frame];
  for (const name of imageNames)
    checkExtents(name, images[name].extents, pagesIn(images[name].sizeBytes), framePages);
}

/** Equal for snapshots that the same nodes can restore. */
export function compatibilityKey(compatibility: Compatibility): string {
  const { hypervisor, hypervisorVersion, machine, cpu, imageDigest } = compatibility;
  const parts = JSON.stringify([hypervisor, hypervisorVersion, machine, cpu, imageDigest]);
  return createHash('sha256').update(parts).digest('hex').slice(0, 16);
}

export const storedBytesOf = (segments: readonly SegmentRef[]): number =>
  segments.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
