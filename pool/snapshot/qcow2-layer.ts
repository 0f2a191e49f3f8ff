// Owns reading which clusters a qcow2 layer itself holds. Refuses to own backing files and writing.
// Invariant: a layer with a feature that is not understood is refused, never half read.
// Source: QEMU's docs/interop/qcow2.txt (header, L1 and L2 tables).
import { type FileHandle, open } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import type { ImageSource, SourceRun } from './image-source.ts';

const headerBytes = 104;
const magic = 0x514649fb;
/** Bit 0, dirty: reference counts may be wrong; the tables read here are not. */
const knownFeatures = 1n;
const offsetMask = 0x00ff_ffff_ffff_fe00n;
const compressedBit = 1n << 62n;
const zeroBit = 1n;
const maxClusterBits = 21;
const maxL1Entries = 4 * 1024 * 1024;
const entryBytes = 8;

interface Header {
  sizeBytes: number;
  clusterBytes: number;
  l1Offset: number;
  l1Entries: number;
}

/** @returns also the size of the disk that the layer is of. */
export async function qcow2LayerSource(path: string): Promise<ImageSource & { imageBytes: number }> {
  await using file = await open(path, 'r');
  const header = await readHeader(file, path);
  const l1 = await readAt(file, path, header.l1Offset, header.l1Entries * entryBytes);
  const runs: SourceRun[] = [];
  const clustersPerTable = header.clusterBytes / entryBytes;
  for (let index = 0; index < header.l1Entries; index++) {
    const tableOffset = Number(l1.readBigUInt64BE(index * entryBytes) & offsetMask);
    if (tableOffset === 0) continue;
    const table = await readAt(file, path, tableOffset, header.clusterBytes);
    appendTable(runs, table, index * clustersPerTable, header, path);
  }
  return { path, runs, imageBytes: header.sizeBytes };
}

function appendTable(runs: SourceRun[], table: Buffer, firstCluster: number, header: Header, path: string) {
  const { clusterBytes, sizeBytes } = header;
  for (let slot = 0; slot * entryBytes < table.length; slot++) {
    const offsetBytes = (firstCluster + slot) * clusterBytes;
    if (offsetBytes >= sizeBytes) return;
    const entry = table.readBigUInt64BE(slot * entryBytes);
    if (entry === 0n) continue;
    if (entry & compressedBit) throw refusal(path, 'has compressed clusters');
    const standsAt = Number(entry & offsetMask);
    const isZero = (entry & zeroBit) !== 0n;
    if (standsAt === 0 && !isZero) continue;
    append(runs, {
      offsetBytes,
      sizeBytes: Math.min(clusterBytes, sizeBytes - offsetBytes),
      fileOffsetBytes: isZero ? -1 : standsAt,
    });
  }
}

/** Neighbours in the image that are also neighbours in the file become one run. */
function append(runs: SourceRun[], run: SourceRun): void {
  const last = runs.at(-1);
  const follows = last && last.offsetBytes + last.sizeBytes === run.offsetBytes;
  const zeros = last?.fileOffsetBytes === -1 && run.fileOffsetBytes === -1;
  const inFile =
    last && last.fileOffsetBytes >= 0 && last.fileOffsetBytes + last.sizeBytes === run.fileOffsetBytes;
  if (follows && (zeros || inFile)) last.sizeBytes += run.sizeBytes;
  else runs.push(run);
}

async function readHeader(file: FileHandle, path: string): Promise<Header> {
  const header = await readAt(file, path, 0, headerBytes);
  if (header.readUInt32BE(0) !== magic) throw refusal(path, 'is not a qcow2 disk');
  const version = header.readUInt32BE(4);
  const clusterBits = header.readUInt32BE(20);
  const features = version === 3 ? header.readBigUInt64BE(72) : 0n;
  const l1Entries = header.readUInt32BE(36);
  if (version !== 2 && version !== 3) throw refusal(path, `is of qcow2 version ${version}`);
  if (header.readUInt32BE(32) !== 0) throw refusal(path, 'is encrypted');
  if ((features & ~knownFeatures) !== 0n) throw refusal(path, `needs features ${features.toString(16)}`);
  if (clusterBits < 12 || clusterBits > maxClusterBits) throw refusal(path, 'has a strange cluster size');
  if (l1Entries > maxL1Entries) throw refusal(path, 'is too big');
  return {
    sizeBytes: Number(header.readBigUInt64BE(24)),
    clusterBytes: 2 ** clusterBits,
    l1Offset: Number(header.readBigUInt64BE(40)),
    l1Entries,
  };
}

async function readAt(file: FileHandle, path: string, offset: number, sizeBytes: number): Promise<Buffer> {
  const bytes = Buffer.alloc(sizeBytes);
  for (let done = 0; done < sizeBytes; ) {
    const { bytesRead } = await file.read(bytes, done, sizeBytes - done, offset + done);
    if (bytesRead === 0) throw refusal(path, 'is cut off');
    done += bytesRead;
  }
  return bytes;
}

const refusal = (path: string, why: string) =>
  new ThawError('hypervisor-failed', `the disk layer ${path} ${why}`);
