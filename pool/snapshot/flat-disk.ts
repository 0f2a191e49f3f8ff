// Owns making a disk layer of a disk that came as one flat file. Refuses to own where the file came from.
// Invariant: over the empty disk the layer reads like the flat file, byte for byte, and holds only where they differ.
import { type FileHandle, open } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import { type SourcedCluster, writeLayer } from '../hypervisor/disk-layer/write-layer.ts';
import { sparseFileSource } from './image-source.ts';

/** As QEMU makes them: layers of different cluster sizes could not be merged. */
const clusterBits = 16;
const clusterBytes = 2 ** clusterBits;
const zeros = Buffer.alloc(clusterBytes);

/** @param emptyPath the image's empty disk. @param targetPath absent. @throws ThawError `incompatible`. */
export async function layerOfFlatDisk(
  flatPath: string,
  emptyPath: string,
  targetPath: string,
): Promise<void> {
  await using flat = await open(flatPath, 'r');
  await using empty = await open(emptyPath, 'r');
  const [{ size: sizeBytes }, { size: emptyBytes }] = await Promise.all([flat.stat(), empty.stat()]);
  if (sizeBytes !== emptyBytes)
    throw new ThawError('incompatible', `a disk of ${sizeBytes} bytes; this node's have ${emptyBytes}`);
  const clusters: SourcedCluster[] = [];
  const [bytes, emptyCluster] = [Buffer.alloc(clusterBytes), Buffer.alloc(clusterBytes)];
  for (const index of await clustersOf([flatPath, emptyPath])) {
    await Promise.all([readCluster(flat, index, bytes), readCluster(empty, index, emptyCluster)]);
    if (bytes.equals(emptyCluster)) continue;
    clusters.push({ index, offsetBytes: bytes.equals(zeros) ? undefined : index * clusterBytes, from: flat });
  }
  const backing = { path: emptyPath, format: 'raw' } as const;
  await writeLayer(targetPath, { sizeBytes, clusterBits, backing, clusters });
}

/** Clusters in which any of the files has data, ascending. */
async function clustersOf(paths: readonly string[]): Promise<number[]> {
  const indices = new Set<number>();
  for (const path of paths)
    for (const { offsetBytes, sizeBytes } of (await sparseFileSource(path)).runs)
      for (let at = Math.floor(offsetBytes / clusterBytes); at * clusterBytes < offsetBytes + sizeBytes; at++)
        indices.add(at);
  return [...indices].sort((a, b) => a - b);
}

async function readCluster(file: FileHandle, index: number, into: Buffer): Promise<void> {
  const { bytesRead } = await file.read(into, 0, clusterBytes, index * clusterBytes);
  into.fill(0, bytesRead);
}
