// Owns checking a snapshot's directory on this node: its record, that every file it needs is there, of the size and form
// that the record says, and can be read to its end. Refuses to own the stored form, which has checksums (verify.ts).
// Invariant: it changes nothing; a byte that was overwritten by another one is not seen, for local files have no checksum.
import { type FileHandle, open, stat } from 'node:fs/promises';
import { type SnapshotFiles, snapshotFilesIn } from '../host/paths.ts';
import { backingOf } from '../hypervisor/disk-layer/layers.ts';
import { readLayer } from '../hypervisor/disk-layer/read-layer.ts';
import { readDeltaRuns } from './delta-runs.ts';
import { sparseFileSource } from './image-source.ts';
import { readRecord, type SnapshotRecord } from './record.ts';

export interface LocalVerification {
  files: number;
  /** That were read; holes are not. */
  bytes: number;
  damaged: { what: string; reason: string }[];
}

const readBytes = 4 * 1024 * 1024;

/** @returns undefined when there is no directory. */
export async function verifyLocal(dir: string): Promise<LocalVerification | undefined> {
  const isThere = await stat(dir).then(
    () => true,
    () => false,
  );
  if (!isThere) return undefined;
  const result: LocalVerification = { files: 1, bytes: 0, damaged: [] };
  const record = await readRecord(dir);
  if (record === undefined) {
    result.damaged.push({ what: 'snapshot.json', reason: 'missing, or not what Thaw writes' });
    return result;
  }
  const check = async (what: string, work: () => Promise<void>) => {
    result.files += 1;
    await work().catch((error: Error) => result.damaged.push({ what, reason: error.message }));
  };
  const files = snapshotFilesIn(dir);
  const read = async (path: string) => {
    result.bytes += await readToEnd(path);
  };
  const whole = (path: string) => () => requireSize(path, memoryBytesOf(record)).then(() => read(path));
  await check('devices', () => requireContent(files.devicesPath).then(() => read(files.devicesPath)));
  await check('disk', () => requireDisk(files.diskPath).then(() => read(files.diskPath)));
  // Its memory is the store's.
  if (record.form === 'paged') await check('manifest', () => read(files.manifestPath));
  else if (record.form === 'whole') await check('pages', whole(files.pagesPath));
  else {
    await check('base-pages', whole(files.basePagesPath));
    await check('delta-runs', () => read(files.deltaRunsPath));
    await check('delta', () => requireDelta(record, files).then(() => read(files.deltaPath)));
  }
  return result;
}

const memoryBytesOf = ({ memoryMb }: SnapshotRecord): number => memoryMb * 1024 * 1024;

async function requireSize(path: string, sizeBytes: number): Promise<void> {
  const { size } = await stat(path);
  if (size !== sizeBytes) throw new Error(`${size} bytes instead of ${sizeBytes}`);
}

async function requireContent(path: string): Promise<void> {
  const { size } = await stat(path);
  if (size === 0) throw new Error('empty');
}

async function requireDelta(record: SnapshotRecord, files: SnapshotFiles): Promise<void> {
  const runs = await readDeltaRuns(files.deltaRunsPath, memoryBytesOf(record));
  const wantedBytes = runs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  await requireSize(files.deltaPath, wantedBytes);
}

/** A layer's tables point into its own file, and what it stands over is there, down to the image's empty disk. */
async function requireDisk(path: string): Promise<void> {
  await requireContent(path);
  const backing = await backingOf(path);
  if (backing === undefined) return;
  const { clusters } = await readLayer(path);
  const { size } = await stat(path);
  const outside = clusters.find(({ offsetBytes }) => offsetBytes !== undefined && offsetBytes >= size);
  if (outside) throw new Error(`cluster ${outside.index} lies behind the end of the file`);
  await requireDisk(backing.path);
}

async function readToEnd(path: string): Promise<number> {
  const { runs } = await sparseFileSource(path);
  await using file = await open(path, 'r');
  const buffer = Buffer.allocUnsafe(readBytes);
  let total = 0;
  for (const { offsetBytes, sizeBytes } of runs) {
    await readRun(file, offsetBytes, sizeBytes, buffer);
    total += sizeBytes;
  }
  return total;
}

async function readRun(file: FileHandle, from: number, sizeBytes: number, into: Buffer): Promise<void> {
  for (let done = 0; done < sizeBytes; ) {
    const { bytesRead } = await file.read(into, 0, Math.min(into.length, sizeBytes - done), from + done);
    if (bytesRead === 0) throw new Error(`ends at ${from + done}`);
    done += bytesRead;
  }
}
