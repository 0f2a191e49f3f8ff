// Owns reading what one disk layer (a qcow2 file) itself holds: which clusters, and where in the file they are.
// Refuses to own what lies below it. Invariant: a layer with any feature that is not understood here is refused.
// Source: QEMU's docs/interop/qcow2.txt.
import { type FileHandle, open } from 'node:fs/promises';
import { ThawError } from '../../../shared/errors.ts';

export type DiskFormat = 'raw' | 'qcow2';

export interface LayerHeader {
  sizeBytes: number;
  clusterBits: number;
  backing: { path: string; format: DiskFormat } | undefined;
  l1Entries: number;
  l1OffsetBytes: number;
}

/** One cluster: its number on the disk, and where its bytes are. */
export interface Cluster {
  index: number;
  /** Absent: it reads as zeros, whatever the layers below hold. */
  offsetBytes: number | undefined;
}

export interface Layer extends LayerHeader {
  path: string;
  /** Ascending by index. */
  clusters: Cluster[];
}

const magic = 0x514649fb;
const headerBytes = 104;
const backingFormatExtension = 0xe2792aca;
const offsetMask = 0x00fffffffffffe00n;
const zeroFlag = 1n;
const compressedFlag = 1n << 62n;
const maxL1Entries = 1 << 20;

/** False for a raw disk, which stands for itself. */
export async function isLayer(path: string): Promise<boolean> {
  await using file = await open(path, 'r');
  const head = Buffer.alloc(4);
  const { bytesRead } = await file.read(head, 0, head.length, 0);
  return bytesRead === head.length && head.readUInt32BE(0) === magic;
}

/** @throws ThawError `hypervisor-failed` when it is no layer, or one that Thaw did not make. */
export async function readLayer(path: string): Promise<Layer> {
  await using file = await open(path, 'r');
  const header = await readHeader(file, path);
  const l1 = await readTable(file, header.l1OffsetBytes, header.l1Entries * 8);
  const clusters: Cluster[] = [];
  const clusterBytes = 2 ** header.clusterBits;
  const l2Entries = clusterBytes / 8;
  for (let table = 0; table < header.l1Entries; table++) {
    const l2OffsetBytes = Number(l1.readBigUInt64BE(table * 8) & offsetMask);
    if (l2OffsetBytes === 0) continue;
    addClusters(clusters, await readTable(file, l2OffsetBytes, clusterBytes), table * l2Entries, path);
  }
  return { ...header, path, clusters };
}

function addClusters(clusters: Cluster[], l2: Buffer, firstIndex: number, path: string): void {
  for (let at = 0; at < l2.length; at += 8) {
    // Nearly all are 0: look before making a bigint.
    if (l2.readUInt32BE(at) === 0 && l2.readUInt32BE(at + 4) === 0) continue;
    const entry = l2.readBigUInt64BE(at);
    if (entry & compressedFlag) throw refused(path, 'compressed clusters');
    const offsetBytes = entry & zeroFlag ? undefined : Number(entry & offsetMask);
    if (offsetBytes !== 0) clusters.push({ index: firstIndex + at / 8, offsetBytes });
  }
}

export async function readHeader(file: FileHandle, path: string): Promise<LayerHeader> {
  const head = await readTable(file, 0, headerBytes);
  if (head.readUInt32BE(0) !== magic) throw refused(path, 'another format');
  if (head.readUInt32BE(4) !== 3) throw refused(path, `version ${head.readUInt32BE(4)}`);
  if (head.readUInt32BE(32) !== 0) throw refused(path, 'encryption');
  if (head.readUInt32BE(60) !== 0) throw refused(path, 'snapshots of its own');
  const features = head.readBigUInt64BE(72);
  if (features !== 0n) throw refused(path, `incompatible features ${features.toString(16)}`);
  const clusterBits = head.readUInt32BE(20);
  if (clusterBits < 9 || clusterBits > 21) throw refused(path, `clusters of 2^${clusterBits} bytes`);
  const l1Entries = head.readUInt32BE(36);
  if (l1Entries > maxL1Entries) throw refused(path, `${l1Entries} tables`);
  return {
    sizeBytes: Number(head.readBigUInt64BE(24)),
    clusterBits,
    l1Entries,
    l1OffsetBytes: Number(head.readBigUInt64BE(40)),
    backing: await readBacking(file, head, 2 ** clusterBits),
  };
}

async function readBacking(file: FileHandle, head: Buffer, clusterBytes: number) {
  const offsetBytes = Number(head.readBigUInt64BE(8));
  if (offsetBytes === 0) return undefined;
  const first = await readTable(file, 0, clusterBytes);
  const path = first.toString('utf8', offsetBytes, offsetBytes + first.readUInt32BE(16));
  let format: DiskFormat = 'raw';
  for (let at = first.readUInt32BE(100); at + 8 <= offsetBytes; ) {
    const [type, sizeBytes] = [first.readUInt32BE(at), first.readUInt32BE(at + 4)];
    if (type === 0) break;
    if (type === backingFormatExtension)
      format = first.toString('latin1', at + 8, at + 8 + sizeBytes) === 'qcow2' ? 'qcow2' : 'raw';
    at += 8 + Math.ceil(sizeBytes / 8) * 8;
  }
  return { path, format };
}

/** A file may end before its last table's last, empty entries. */
async function readTable(file: FileHandle, offsetBytes: number, sizeBytes: number): Promise<Buffer> {
  const table = Buffer.alloc(sizeBytes);
  for (let done = 0; done < sizeBytes; ) {
    const { bytesRead } = await file.read(table, done, sizeBytes - done, offsetBytes + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return table;
}

const refused = (path: string, what: string) =>
  new ThawError('hypervisor-failed', `the disk layer ${path} has ${what}, which Thaw does not make`);
