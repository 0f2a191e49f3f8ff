// Owns how a snapshot of this node's library is described to the publisher: its memory and disk as layers of local files,
// and what of that its parent has too. Refuses to own publishing and when. Invariant: what is published is right whatever
// the parent is: every place where either of the two has anything is looked at; a parent only saves space.
import { stat } from 'node:fs/promises';
import { type SnapshotFiles, snapshotFilesIn } from '../host/paths.ts';
import { backingOf } from '../hypervisor/disk-layer/layers.ts';
import { readDeltaRuns } from './delta-runs.ts';
import { hasFlatDisks } from './disk-form.ts';
import { deltaSource, type ImageSource, type SourceRun, sparseFileSource } from './image-source.ts';
import type { ImageCapture, LocalCapture } from './publish.ts';
import { qcow2LayerSource } from './qcow2-layer.ts';
import type { SnapshotRecord } from './record.ts';

/** A stretch of an image. */
export interface Stretch {
  offsetBytes: number;
  sizeBytes: number;
}

/**
 * @param parent a snapshot of this node that is in the store, best the record's own parent; its files must stay until
 * the publish has settled. Without one everything is stored.
 */
export async function localCaptureOf(record: SnapshotRecord, parent?: SnapshotRecord): Promise<LocalCapture> {
  const files = snapshotFilesIn(record.dir);
  const memoryBytes = record.memoryMb * 1024 * 1024;
  const usable = parent && parent.memoryMb === record.memoryMb ? parent : undefined;
  const memory = await memoryLayers(record, files);
  const disk = await diskOf(record, files);
  const parentFiles = usable && snapshotFilesIn(usable.dir);
  const parentMemory = usable && (await memoryLayers(usable, parentFiles!));
  const parentDisk = usable && (await diskOf(usable, parentFiles!));
  const fits = parentDisk?.imageBytes === disk.imageBytes;
  return {
    snapshotId: record.snapshotId,
    kind: record.kind,
    names: record.names,
    source: record.source,
    ...(usable && fits ? { parentId: usable.snapshotId } : {}),
    createdAtMs: Date.parse(record.createdAt),
    nonce: record.nonce,
    memoryMb: record.memoryMb,
    vcpus: record.vcpus,
    ...(record.prime ? { prime: record.prime } : {}),
    compatibility: record.compatibility,
    memory: imageOver(memoryBytes, memory, fits ? parentMemory : undefined),
    disk: imageOver(disk.imageBytes, disk, fits ? parentDisk : undefined),
    devicesPath: files.devicesPath,
    facts: factsOf(record),
  };
}

/** Layers of an image, lowest first, over zeros. */
interface Layers {
  sources: ImageSource[];
  /** Which file the lowest layer is. */
  bottom: string | undefined;
}

async function memoryLayers(record: SnapshotRecord, files: SnapshotFiles): Promise<Layers> {
  if (record.form === 'whole')
    return { sources: [await sparseFileSource(files.pagesPath)], bottom: await identityOf(files.pagesPath) };
  const runs = await readDeltaRuns(files.deltaRunsPath, record.memoryMb * 1024 * 1024);
  const base = await sparseFileSource(files.basePagesPath);
  return {
    sources: [base, deltaSource({ path: files.deltaPath, runs })],
    bottom: await identityOf(base.path),
  };
}

interface DiskLayers extends Layers {
  imageBytes: number;
}

async function diskOf({ compatibility }: SnapshotRecord, { diskPath }: SnapshotFiles): Promise<DiskLayers> {
  if (!hasFlatDisks(compatibility)) return diskLayers(diskPath);
  const sources = [await sparseFileSource(diskPath)];
  return { sources, bottom: undefined, imageBytes: (await stat(diskPath)).size };
}

/** The layer at `path` and all below it. */
async function diskLayers(path: string): Promise<DiskLayers> {
  const top = await qcow2LayerSource(path);
  const backing = await backingOf(path);
  if (!backing) return { sources: [top], bottom: undefined, imageBytes: top.imageBytes };
  if (backing.format === 'qcow2') {
    const below = await diskLayers(backing.path);
    return { ...below, sources: [...below.sources, top], imageBytes: top.imageBytes };
  }
  const bottom = await sparseFileSource(backing.path);
  return { sources: [bottom, top], bottom: await identityOf(backing.path), imageBytes: top.imageBytes };
}

/** Bases are hard links: the same file, whatever its names; a template that was built again is another file. */
async function identityOf(path: string): Promise<string> {
  const { dev, ino } = await stat(path, { bigint: true });
  return `${dev}:${ino}`;
}

function imageOver(sizeBytes: number, own: Layers, parent: Layers | undefined): ImageCapture {
  if (!parent) return { sizeBytes, sources: own.sources };
  const scope = scopeOf(sizeBytes, own, parent);
  // Where the parent has something and this image nothing, it has zeros.
  const zeros = { path: '', runs: scope.map((stretch) => ({ ...stretch, fileOffsetBytes: -1 })) };
  const sources = own.sources.map(({ path, runs }) => ({ path, runs: within(runs, scope) }));
  return { sizeBytes, sources: [zeros, ...sources], parent: parent.sources };
}

/** Where the two may differ. Over one bottom that is only where a layer above it has anything. */
function scopeOf(sizeBytes: number, own: Layers, parent: Layers): Stretch[] {
  if (own.bottom === undefined || own.bottom !== parent.bottom) return [{ offsetBytes: 0, sizeBytes }];
  const above = [...own.sources.slice(1), ...parent.sources.slice(1)];
  return united(above.flatMap(({ runs }) => runs));
}

export function united(stretches: readonly Stretch[]): Stretch[] {
  const all: Stretch[] = [];
  for (const { offsetBytes, sizeBytes } of [...stretches].sort((a, b) => a.offsetBytes - b.offsetBytes)) {
    const last = all.at(-1);
    const end = offsetBytes + sizeBytes;
    if (last && last.offsetBytes + last.sizeBytes >= offsetBytes)
      last.sizeBytes = Math.max(last.sizeBytes, end - last.offsetBytes);
    else all.push({ offsetBytes, sizeBytes });
  }
  return all;
}

/** The parts of `runs` inside `scope`; both ascend. */
export function within(runs: readonly SourceRun[], scope: readonly Stretch[]): SourceRun[] {
  const parts: SourceRun[] = [];
  let at = 0;
  for (const run of runs) {
    const runEnd = run.offsetBytes + run.sizeBytes;
    while (at < scope.length && scope[at]!.offsetBytes + scope[at]!.sizeBytes <= run.offsetBytes) at++;
    for (let next = at; next < scope.length && scope[next]!.offsetBytes < runEnd; next++) {
      const start = Math.max(run.offsetBytes, scope[next]!.offsetBytes);
      const end = Math.min(runEnd, scope[next]!.offsetBytes + scope[next]!.sizeBytes);
      const moved = start - run.offsetBytes;
      const fileOffsetBytes = run.fileOffsetBytes < 0 ? -1 : run.fileOffsetBytes + moved;
      parts.push({ offsetBytes: start, sizeBytes: end - start, fileOffsetBytes });
    }
  }
  return parts;
}

const pauseFact = 'pauseMs.';

/** By stage, of the facts of a manifest. */
export function pausesOf(facts: Record<string, number>): Record<string, number> {
  const pauses = Object.entries(facts).filter(([key]) => key.startsWith(pauseFact));
  return Object.fromEntries(pauses.map(([key, ms]) => [key.slice(pauseFact.length), ms]));
}

function factsOf(record: SnapshotRecord): Record<string, number> {
  const pauses = Object.entries(record.pauseMs ?? {}).map(([stage, ms]) => [`${pauseFact}${stage}`, ms]);
  const dirty = record.dirtyPages === undefined ? [] : [['dirtyPages', record.dirtyPages]];
  return Object.fromEntries([...pauses, ...dirty]);
}
