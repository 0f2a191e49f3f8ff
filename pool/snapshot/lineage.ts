// Owns the short form of a snapshot that listings and collection need, and the index object that holds many of them.
// Refuses to own reading the store (catalogue.ts). Invariant: an entry counts only for the manifest object it was made
// from, told by size and time; so an index that is behind costs reads and is never wrong.
import { Packr } from 'msgpackr';
import { ThawError } from '../../shared/errors.ts';
import type { BlobInfo } from '../store/blob-store.ts';
import {
  compatibilityKey,
  type Manifest,
  type SegmentRef,
  type SnapshotKind,
  type SnapshotTitle,
  storedBytesOf,
} from './manifest.ts';
import { type ClusterKey, openSigned, type SignedKind, sealSigned } from './signed-object.ts';
import { lineageIndexKey } from './store-keys.ts';

/** One line of `snapshot ls`. */
export interface SnapshotSummary extends SnapshotTitle {
  snapshotId: string;
  parentId: string | undefined;
  depth: number;
  createdAtMs: number;
  memoryMb: number;
  vcpus: number;
  compatibilityKey: string;
  /** Bytes that it made itself when it was published. */
  addedBytes: number;
  segments: SegmentRef[];
  facts: Record<string, number>;
  /** Bytes of all segments it needs. */
  storedBytes: number;
  /** Bytes of the segments that no other listed snapshot needs: what removing it would free. */
  uniqueBytes: number;
}

export type LineageEntry = Omit<SnapshotSummary, 'storedBytes' | 'uniqueBytes'> & {
  /** Of the manifest object. */
  objectBytes: number;
  objectModifiedAtMs: number;
};

const indexKind: SignedKind = { magic: 'THAWLIDX', version: 2, maxPayloadBytes: 256 * 1024 * 1024 };
const packr = new Packr({
  useRecords: false,
  variableMapSize: true,
  moreTypes: false,
  int64AsType: 'number',
});

export function entryOf(manifest: Manifest, object: BlobInfo): LineageEntry {
  const { snapshotId, parentId, depth, createdAtMs, memoryMb, vcpus, addedBytes, segments, facts } = manifest;
  const { kind, names, source } = manifest;
  return {
    snapshotId,
    parentId,
    kind,
    names,
    source,
    depth,
    createdAtMs,
    memoryMb,
    vcpus,
    compatibilityKey: compatibilityKey(manifest.compatibility),
    addedBytes,
    segments,
    facts,
    objectBytes: object.sizeBytes,
    objectModifiedAtMs: object.modifiedAtMs,
  };
}

export const isOf = (entry: LineageEntry, object: BlobInfo): boolean =>
  entry.objectBytes === object.sizeBytes && entry.objectModifiedAtMs === object.modifiedAtMs;

/** Newest first. */
export function summariesOf(entries: readonly LineageEntry[]): SnapshotSummary[] {
  const users = new Map<string, number>();
  for (const { segments } of entries)
    for (const { sha256 } of segments) users.set(sha256, (users.get(sha256) ?? 0) + 1);
  const summaries = entries.map(({ objectBytes: _, objectModifiedAtMs: __, ...entry }) => ({
    ...entry,
    storedBytes: storedBytesOf(entry.segments),
    uniqueBytes: storedBytesOf(entry.segments.filter(({ sha256 }) => users.get(sha256) === 1)),
  }));
  return summaries.sort((a, b) => b.createdAtMs - a.createdAtMs || (a.snapshotId < b.snapshotId ? -1 : 1));
}

export interface LineageNode extends SnapshotSummary {
  children: LineageNode[];
}

/** Snapshots whose parent is not listed are roots. */
export function treeOf(summaries: readonly SnapshotSummary[]): LineageNode[] {
  const nodes = new Map(summaries.map((summary) => [summary.snapshotId, { ...summary, children: [] }]));
  const roots: LineageNode[] = [];
  for (const node of nodes.values() as Iterable<LineageNode>) {
    const parent =
      node.parentId === undefined ? undefined : (nodes.get(node.parentId) as LineageNode | undefined);
    (parent?.children ?? roots).push(node);
  }
  return roots;
}

export function encodeIndex(entries: readonly LineageEntry[], key: ClusterKey): Buffer {
  const rows = entries.map((entry) => [
    entry.snapshotId,
    entry.parentId ?? null,
    entry.depth,
    entry.createdAtMs,
    entry.memoryMb,
    entry.vcpus,
    entry.compatibilityKey,
    entry.addedBytes,
    entry.segments.map(({ sha256 }) => Buffer.from(sha256, 'hex')),
    entry.segments.map(({ sizeBytes }) => sizeBytes),
    entry.facts,
    entry.objectBytes,
    entry.objectModifiedAtMs,
    entry.kind,
    entry.names,
    entry.source ?? null,
  ]);
  return sealSigned(indexKind, lineageIndexKey, key, packr.pack(rows));
}

type Row = [
  string,
  string | null,
  number,
  number,
  number,
  number,
  string,
  number,
  Buffer[],
  number[],
  Record<string, number>,
  number,
  number,
  SnapshotKind,
  string[],
  string | null,
];

/** Its signature is trusted for its content: only this file writes it. @throws ThawError `snapshot-damaged`. */
export function decodeIndex(object: Buffer, key: ClusterKey): LineageEntry[] {
  const payload = openSigned(indexKind, lineageIndexKey, key, object);
  try {
    return (packr.unpack(payload) as Row[]).map(entryOfRow);
  } catch (error) {
    throw new ThawError('snapshot-damaged', `the lineage index: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function entryOfRow(row: Row): LineageEntry {
  const [snapshotId, parentId, depth, createdAtMs, memoryMb, vcpus, compatibility, addedBytes] = row;
  const [, , , , , , , , digests, sizes, facts, objectBytes, objectModifiedAtMs, kind, names, source] = row;
  return {
    snapshotId,
    parentId: parentId ?? undefined,
    kind,
    names,
    source: source ?? undefined,
    depth,
    createdAtMs,
    memoryMb,
    vcpus,
    compatibilityKey: compatibility,
    addedBytes,
    segments: digests.map((digest, at) => ({ sha256: digest.toString('hex'), sizeBytes: sizes[at]! })),
    facts,
    objectBytes,
    objectModifiedAtMs,
  };
}
