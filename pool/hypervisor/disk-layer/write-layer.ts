// Owns writing one disk layer (a qcow2 file) out of clusters of others. Refuses to own which clusters (layers.ts).
// Invariant: the file is whole and clean by QEMU's own check, with its clusters in the order of the disk.
// Layout: header, reference counts, first table, second tables, clusters.
import { type FileHandle, open } from 'node:fs/promises';
import { ThawError } from '../../../shared/errors.ts';
import type { Cluster, DiskFormat } from './read-layer.ts';

export const maxBackingPathBytes = 1023;
const headerBytes = 104;
const copiedFlag = 1n << 63n;
const refcountBytes = 2;
/** Clusters that stand beside each other are copied together, up to this size. */
const copyBytes = 4 * 1024 * 1024;

export interface LayerContent {
  sizeBytes: number;
  clusterBits: number;
  backing: { path: string; format: DiskFormat };
  /** Ascending by index. */
  clusters: readonly SourcedCluster[];
}

export interface SourcedCluster extends Cluster {
  /** The file that `offsetBytes` counts in. */
  from: FileHandle;
}

interface Layout {
  clusterBytes: number;
  refcountTableClusters: number;
  refcountBlocks: number;
  l1Entries: number;
  l1Clusters: number;
  /** Numbers of the second tables that exist, ascending. */
  l2Tables: number[];
  /** In clusters of the file. */
  l1Start: number;
  l2Start: number;
  dataStart: number;
  totalClusters: number;
}

/** Writes an absent file and makes it durable. */
export async function writeLayer(path: string, content: LayerContent): Promise<void> {
  await using file = await open(path, 'wx', 0o600);
  const layout = layoutOf(content);
  await file.write(headOf(content, layout), 0, undefined, 0);
  await file.write(tablesOf(content, layout), 0, undefined, layout.l1Start * layout.clusterBytes);
  await copyClusters(file, content, layout);
  await file.truncate(layout.totalClusters * layout.clusterBytes);
  await file.sync();
}

function layoutOf({ sizeBytes, clusterBits, clusters }: LayerContent): Layout {
  const clusterBytes = 2 ** clusterBits;
  const entriesPerTable = clusterBytes / 8;
  const l1Entries = Math.max(1, Math.ceil(sizeBytes / clusterBytes / entriesPerTable));
  const l1Clusters = Math.ceil((l1Entries * 8) / clusterBytes);
  const l2Tables = [...new Set(clusters.map(({ index }) => Math.floor(index / entriesPerTable)))];
  const held = clusters.filter(({ offsetBytes }) => offsetBytes !== undefined).length;
  const counted = (refcountBlocks: number, refcountTableClusters: number) =>
    1 + refcountTableClusters + refcountBlocks + l1Clusters + l2Tables.length + held;
  // The counts take clusters that are counted, too: grows until they cover themselves.
  let [refcountBlocks, refcountTableClusters] = [0, 0];
  for (let blocks = 1; blocks > refcountBlocks; ) {
    refcountBlocks = blocks;
    refcountTableClusters = Math.ceil((refcountBlocks * 8) / clusterBytes);
    blocks = Math.ceil((counted(refcountBlocks, refcountTableClusters) * refcountBytes) / clusterBytes);
  }
  const totalClusters = counted(refcountBlocks, refcountTableClusters);
  const l1Start = 1 + refcountTableClusters + refcountBlocks;
  const l2Start = l1Start + l1Clusters;
  const dataStart = l2Start + l2Tables.length;
  return {
    ...{ clusterBytes, refcountTableClusters, refcountBlocks, l1Entries, l1Clusters, l2Tables },
    ...{ l1Start, l2Start, dataStart, totalClusters },
  };
}

/** Header and reference counts. */
function headOf({ sizeBytes, clusterBits, backing }: LayerContent, layout: Layout): Buffer {
  const { clusterBytes, refcountTableClusters, refcountBlocks } = layout;
  const head = Buffer.alloc(layout.l1Start * clusterBytes);
  head.write('QFI\xfb', 0, 'latin1');
  head.writeUInt32BE(3, 4);
  head.writeUInt32BE(clusterBits, 20);
  head.writeBigUInt64BE(BigInt(sizeBytes), 24);
  head.writeUInt32BE(layout.l1Entries, 36);
  head.writeBigUInt64BE(BigInt(layout.l1Start * clusterBytes), 40);
  head.writeBigUInt64BE(BigInt(clusterBytes), 48);
  head.writeUInt32BE(refcountTableClusters, 56);
  head.writeUInt32BE(4, 96);
  head.writeUInt32BE(headerBytes, 100);
  // The extension that names the backing file's format; a zero type after it ends the list.
  head.writeUInt32BE(0xe2792aca, headerBytes);
  head.writeUInt32BE(backing.format.length, headerBytes + 4);
  head.write(backing.format, headerBytes + 8, 'latin1');
  nameBacking(head, headerBytes + 24, backing.path);
  const firstBlock = 1 + refcountTableClusters;
  for (let block = 0; block < refcountBlocks; block++)
    head.writeBigUInt64BE(BigInt((firstBlock + block) * clusterBytes), clusterBytes + block * 8);
  for (let cluster = 0; cluster < layout.totalClusters; cluster++)
    head.writeUInt16BE(1, firstBlock * clusterBytes + cluster * refcountBytes);
  return head;
}

/** Puts the path of the backing file into a first cluster. */
export function nameBacking(head: Buffer, offsetBytes: number, path: string): void {
  const name = Buffer.from(path);
  if (name.length > maxBackingPathBytes)
    throw new ThawError('bad-config', `the path ${path} is too long for a disk`);
  head.writeBigUInt64BE(BigInt(offsetBytes), 8);
  head.writeUInt32BE(name.length, 16);
  name.copy(head, offsetBytes);
}

function tablesOf({ clusters }: LayerContent, layout: Layout): Buffer {
  const { clusterBytes, l1Clusters, l2Tables, l2Start } = layout;
  const entriesPerTable = clusterBytes / 8;
  const tables = Buffer.alloc((l1Clusters + l2Tables.length) * clusterBytes);
  const places = new Map(l2Tables.map((table, place) => [table, place]));
  for (const [table, place] of places)
    tables.writeBigUInt64BE(BigInt((l2Start + place) * clusterBytes) | copiedFlag, table * 8);
  let next = layout.dataStart;
  for (const { index, offsetBytes } of clusters) {
    const place = places.get(Math.floor(index / entriesPerTable))!;
    const at = (l1Clusters + place) * clusterBytes + (index % entriesPerTable) * 8;
    // 1: reads as zeros.
    tables.writeBigUInt64BE(offsetBytes === undefined ? 1n : BigInt(next++ * clusterBytes) | copiedFlag, at);
  }
  return tables;
}

async function copyClusters(
  file: FileHandle,
  { clusters }: LayerContent,
  { clusterBytes, dataStart }: Layout,
): Promise<void> {
  const buffer = Buffer.allocUnsafeSlow(copyBytes);
  const held = clusters.filter(({ offsetBytes }) => offsetBytes !== undefined);
  let position = dataStart * clusterBytes;
  for (let at = 0; at < held.length; ) {
    const { from, offsetBytes } = held[at]!;
    let count = 1;
    const follows = () => {
      const next = held[at + count];
      return next?.from === from && next.offsetBytes === offsetBytes! + count * clusterBytes;
    };
    while ((count + 1) * clusterBytes <= copyBytes && follows()) count += 1;
    await copyRange(from, offsetBytes!, file, position, buffer.subarray(0, count * clusterBytes));
    position += count * clusterBytes;
    at += count;
  }
}

async function copyRange(
  from: FileHandle,
  offsetBytes: number,
  to: FileHandle,
  position: number,
  buffer: Buffer,
): Promise<void> {
  for (let done = 0; done < buffer.length; ) {
    const { bytesRead } = await from.read(buffer, done, buffer.length - done, offsetBytes + done);
    // QEMU leaves the end of a file's last cluster unwritten.
    if (bytesRead === 0) buffer.fill(0, done);
    done = bytesRead === 0 ? buffer.length : done + bytesRead;
  }
  for (let done = 0; done < buffer.length; ) {
    const { bytesWritten } = await to.write(buffer, done, buffer.length - done, position + done);
    done += bytesWritten;
  }
}
