// Owns made-up captures for tests: memory, disk and device files whose every byte follows from a seed.
// Invariant: nothing here is random; the same call makes the same files.
import { mkdir, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { snapshotIdOf } from '../../shared/ids.ts';
import { type Paths, snapshotFilesIn } from '../host/paths.ts';
import { pageBytes } from './extents.ts';
import { deltaSource, sparseFileSource } from './image-source.ts';
import type { LocalCapture } from './publish.ts';
import { recordFormat, type SnapshotRecord, writeRecord } from './record.ts';
import { ClusterKey } from './signed-object.ts';

export const testKey = new ClusterKey(Buffer.alloc(32, 7));
export const testCompatibility = {
  hypervisor: 'test',
  hypervisorVersion: '1',
  machine: 'm',
  cpu: 'c',
  imageDigest: 'd'.repeat(64),
};

/** Disks are flat files: nothing but Thaw is needed to make one. */
export const flatDiskCompatibility = { ...testCompatibility, hypervisor: 'cloud-hypervisor' };

export const testId = (number: number): string => snapshotIdOf(number.toString(16).padStart(24, '0'));

/** A page that compresses about as memory does: a few words of its own among repetition. */
export function testPage(seed: number): Buffer {
  const page = Buffer.alloc(pageBytes);
  let state = (seed * 2654435761 + 1) >>> 0;
  for (let at = 0; at < pageBytes; at += 4) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    page.writeUInt32LE(at % 32 < 8 ? state : (seed & 0xff) * 0x01010101, at);
  }
  return page;
}

export interface TestImage {
  memory: Buffer;
  disk: Buffer;
  devices: Buffer;
}

/** @param memoryMb of which every fourth page is zero. */
export function testImage(seed: number, memoryMb = 4): TestImage {
  const memory = Buffer.alloc(memoryMb * 1024 * 1024);
  for (let page = 0; page * pageBytes < memory.length; page++)
    if (page % 4 !== 3) testPage(seed * 100_000 + page).copy(memory, page * pageBytes);
  const disk = Buffer.alloc(1024 * 1024);
  for (let page = 0; page < 20; page++)
    testPage(seed * 100_000 + 50_000 + page).copy(disk, page * 3 * pageBytes);
  const devices = Buffer.concat([testPage(seed + 1), testPage(seed + 2).subarray(0, 1000)]);
  return { memory, disk, devices };
}

const described = (number: number, image: TestImage, devicesPath: string) => ({
  snapshotId: testId(number),
  kind: 'sandbox' as const,
  names: [`test-${number}`],
  source: undefined as string | undefined,
  createdAtMs: 1_700_000_000_000 + number,
  nonce: number.toString(16).padStart(32, '0'),
  memoryMb: image.memory.length / (1024 * 1024),
  vcpus: 1,
  compatibility: testCompatibility,
  devicesPath,
});

/** Whole files, as a template has them. */
export async function wholeCapture(dir: string, number: number, image: TestImage): Promise<LocalCapture> {
  await mkdir(dir, { recursive: true });
  const [pagesPath, diskPath, devicesPath] = ['pages', 'disk', 'devices'].map((name) => join(dir, name));
  await writeSparse(pagesPath!, image.memory);
  await writeSparse(diskPath!, image.disk);
  await writeFile(devicesPath!, image.devices);
  return {
    ...described(number, image, devicesPath!),
    memory: { sizeBytes: image.memory.length, sources: [await sparseFileSource(pagesPath!)] },
    disk: { sizeBytes: image.disk.length, sources: [await sparseFileSource(diskPath!)] },
  };
}

/** What a clone of `parent` changed to become `image`: a delta of the pages in `dirty`, and the disk's. */
export async function deltaCapture(
  dir: string,
  number: number,
  image: TestImage,
  parent: LocalCapture,
  dirty: { memory: readonly number[]; disk: readonly number[] },
): Promise<LocalCapture> {
  await mkdir(dir, { recursive: true });
  const devicesPath = join(dir, 'devices');
  await writeFile(devicesPath, image.devices);
  const capture = async (name: 'memory' | 'disk') => {
    const path = join(dir, `${name}-delta`);
    const runs = dirty[name].map((page) => ({ offsetBytes: page * pageBytes, sizeBytes: pageBytes }));
    const pages = runs.map(({ offsetBytes }) => image[name].subarray(offsetBytes, offsetBytes + pageBytes));
    await writeFile(path, Buffer.concat(pages));
    return {
      sizeBytes: image[name].length,
      sources: [deltaSource({ path, runs })],
      // All that lies below, whatever the depth.
      parent: [...(parent[name].parent ?? []), ...parent[name].sources],
    };
  };
  return {
    ...described(number, image, devicesPath),
    parentId: parent.snapshotId,
    memory: await capture('memory'),
    disk: await capture('disk'),
  };
}

/** A snapshot and its child, as the program that kills itself publishes them. */
export async function crashCaptures(dir: string): Promise<{ parent: LocalCapture; child: LocalCapture }> {
  const image = testImage(1);
  const parent = await wholeCapture(join(dir, 'parent'), 1, image);
  const memory = [0, 1, 2, 500];
  for (const page of memory) testPage(5_000 + page).copy(image.memory, page * pageBytes);
  return { parent, child: await deltaCapture(join(dir, 'child'), 2, image, parent, { memory, disk: [] }) };
}

async function writeSparse(path: string, bytes: Buffer): Promise<void> {
  const zero = Buffer.alloc(pageBytes);
  await using file = await open(path, 'w');
  await file.truncate(bytes.length);
  for (let at = 0; at < bytes.length; at += pageBytes) {
    const page = bytes.subarray(at, at + pageBytes);
    if (!page.equals(zero)) await file.write(page, 0, page.length, at);
  }
}

/** A whole snapshot on a node, as a capture leaves it; the library is not told. @returns its record. */
export async function writeTestSnapshot(
  { snapshotDir }: Paths,
  image: TestImage,
  snapshotId: string,
  more: Partial<SnapshotRecord> = {},
): Promise<SnapshotRecord> {
  const dir = snapshotDir(snapshotId);
  const files = snapshotFilesIn(dir);
  await mkdir(dir);
  await writeFile(files.pagesPath, image.memory);
  await writeFile(files.diskPath, image.disk);
  await writeFile(files.devicesPath, image.devices);
  const record: SnapshotRecord = {
    ...{ format: recordFormat, snapshotId, kind: 'sandbox', names: [], depth: 0, form: 'whole', dir },
    ...{ nonce: snapshotId.slice(-24).padStart(32, '0'), memoryMb: 4, vcpus: 1 },
    ...{ compatibility: flatDiskCompatibility, sizeBytes: 4096 },
    ...{ createdAt: new Date(1_700_000_000_000).toISOString() },
    ...more,
  };
  await writeRecord(dir, record);
  return record;
}
