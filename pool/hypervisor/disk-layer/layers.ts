// Owns how the layers of a disk become one: a clone's layer over the changes of the snapshot it came from, or all of
// them over the empty disk. So a chain never grows with depth, and no disk needs another snapshot's directory.
// Invariant: the upper layer wins; sources are only read.
import { type FileHandle, open } from 'node:fs/promises';
import { ThawError } from '../../../shared/errors.ts';
import { type DiskFormat, isLayer, type Layer, readHeader, readLayer } from './read-layer.ts';
import { nameBacking, type SourcedCluster, writeLayer } from './write-layer.ts';

/** Lets a layer stand over another file of the same content and format as before. */
export async function rebaseLayer(path: string, backingPath: string): Promise<void> {
  await using file = await open(path, 'r+');
  const { backing } = await readHeader(file, path);
  if (!backing) throw new ThawError('hypervisor-failed', `the disk layer ${path} stands over nothing`);
  // The whole first part of the header cluster that a name may reach, so that no end of a longer name stays.
  const head = Buffer.alloc(16 * 1024);
  await file.read(head, 0, head.length, 0);
  const offsetBytes = Number(head.readBigUInt64BE(8));
  head.fill(0, offsetBytes);
  nameBacking(head, offsetBytes, backingPath);
  await file.write(head, 0, head.length, 0);
  await file.sync();
}

/**
 * Writes `targetPath`: everything that `lowerPath` or `upperPath` holds, over what `lowerPath` stands over, or over
 * `backingPath`, which is the same content under another name.
 */
export async function mergeLayers(
  targetPath: string,
  lowerPath: string,
  upperPath: string,
  backingPath?: string,
): Promise<void> {
  const [lower, upper] = await Promise.all([readLayer(lowerPath), readLayer(upperPath)]);
  if (lower.sizeBytes !== upper.sizeBytes || lower.clusterBits !== upper.clusterBits)
    throw new ThawError('hypervisor-failed', `the disk layers ${lowerPath} and ${upperPath} do not fit`);
  if (!lower.backing) throw new ThawError('hypervisor-failed', `${lowerPath} stands over nothing`);
  await using lowerFile = await open(lowerPath, 'r');
  await using upperFile = await open(upperPath, 'r');
  await writeLayer(targetPath, {
    sizeBytes: lower.sizeBytes,
    clusterBits: lower.clusterBits,
    backing: { ...lower.backing, path: backingPath ?? lower.backing.path },
    clusters: merged(sourced(lower, lowerFile), sourced(upper, upperFile)),
  });
}

/** What a layer stands over. */
export async function backingOf(path: string): Promise<{ path: string; format: DiskFormat } | undefined> {
  if (!(await isLayer(path))) return undefined;
  await using file = await open(path, 'r');
  return (await readHeader(file, path)).backing;
}

const sourced = (layer: Layer, from: FileHandle): SourcedCluster[] =>
  layer.clusters.map((cluster) => ({ ...cluster, from }));

function merged(lower: readonly SourcedCluster[], upper: readonly SourcedCluster[]): SourcedCluster[] {
  const all: SourcedCluster[] = [];
  let at = 0;
  for (const cluster of upper) {
    for (; at < lower.length && lower[at]!.index < cluster.index; at++) all.push(lower[at]!);
    if (lower[at]?.index === cluster.index) at += 1;
    all.push(cluster);
  }
  return [...all, ...lower.slice(at)];
}
