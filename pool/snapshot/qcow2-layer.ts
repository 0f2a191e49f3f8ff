// Owns how a disk layer describes part of the guest's disk: the clusters it holds as runs. Reading the layer's tables is
// the disk layers' own (hypervisor/disk-layer).
import { readLayer } from '../hypervisor/disk-layer/read-layer.ts';
import type { ImageSource, SourceRun } from './image-source.ts';

/**
 * What the layer itself holds, not its backing file. @returns also the size of the disk that the layer is of.
 * @throws ThawError `hypervisor-failed` when it is no layer that Thaw makes.
 */
export async function qcow2LayerSource(path: string): Promise<ImageSource & { imageBytes: number }> {
  const { clusters, clusterBits, sizeBytes: imageBytes } = await readLayer(path);
  const clusterBytes = 2 ** clusterBits;
  const runs: SourceRun[] = [];
  for (const cluster of clusters) {
    const offsetBytes = cluster.index * clusterBytes;
    if (offsetBytes >= imageBytes) break;
    const sizeBytes = Math.min(clusterBytes, imageBytes - offsetBytes);
    append(runs, { offsetBytes, sizeBytes, fileOffsetBytes: cluster.offsetBytes ?? -1 });
  }
  return { path, runs, imageBytes };
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
