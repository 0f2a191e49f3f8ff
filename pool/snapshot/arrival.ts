// Owns how a snapshot comes from the store to this node: its manifest, device state and disk become files of a snapshot
// directory; its memory stays in the store and is served from there, or is fetched too.
// Refuses to own serving memory (pagefs). Invariant: the directory appears when it is whole, and every byte in it was
// verified under the manifest.
import { randomBytes } from 'node:crypto';
import { mkdir, open, rename, rm, writeFile } from 'node:fs/promises';
import { Cleanup } from '../../shared/cleanup.ts';
import { type Paths, snapshotFilesIn } from '../host/paths.ts';
import type { BlobStore } from '../store/blob-store.ts';
import { hasFlatDisks } from './disk-form.ts';
import { layerOfFlatDisk } from './flat-disk.ts';
import { FrameReader, storeTier } from './frame-reader.ts';
import { pausesOf } from './local-capture.ts';
import type { Manifest } from './manifest.ts';
import { encodeManifest } from './manifest-codec.ts';
import { materialise } from './materialise-image.ts';
import { ownBytes, publishDirectory, recordFormat, type SnapshotRecord, writeRecord } from './record.ts';
import type { ClusterKey } from './signed-object.ts';
import { spaceError } from './spool.ts';

export interface ArrivalOptions {
  store: BlobStore;
  clusterKey: ClusterKey;
  paths: Paths;
  /** The image's empty disk, which the snapshot's own stands over. */
  blankDiskPath: string;
  /** False: its memory is fetched now, for nothing here could serve it. */
  paged: boolean;
  /** Its manifest is here: whoever serves its memory can begin. */
  onManifest?: (manifestPath: string) => void;
}

/** @throws ThawError `snapshot-damaged` | `store-unavailable` | `no-space` | `deadline-exceeded` | `incompatible`. */
export async function bringSnapshot(manifest: Manifest, options: ArrivalOptions): Promise<SnapshotRecord> {
  const dir = options.paths.snapshotDir(manifest.snapshotId);
  // Of each try its own: what an earlier one that failed still writes goes nowhere.
  const partialDir = `${dir}.${randomBytes(4).toString('hex')}.partial`;
  await using undo = new Cleanup();
  undo.defer('partial snapshot', () => rm(partialDir, { recursive: true, force: true, maxRetries: 3 }));
  try {
    await mkdir(partialDir, { recursive: true, mode: 0o700 });
    await bringParts(manifest, partialDir, options);
    const record = await recordOf(manifest, dir, partialDir, options.paged);
    await writeRecord(partialDir, record);
    await publishDirectory(partialDir, dir);
    undo.disarm();
    return record;
  } catch (error) {
    throw spaceError(`bringing ${manifest.snapshotId}`, error);
  }
}

async function bringParts(manifest: Manifest, partialDir: string, options: ArrivalOptions): Promise<void> {
  const { store, clusterKey, blankDiskPath, paged, onManifest } = options;
  const files = snapshotFilesIn(partialDir);
  const tier = storeTier(store);
  // Twice: what was wrong once may have been damaged on the way.
  const reader = new FrameReader({ manifest, tiers: [tier, tier] });
  const object = encodeManifest(manifest, clusterKey);
  await writeFile(files.manifestPath, object, { mode: 0o600 });
  onManifest?.(files.manifestPath);
  const given = new AbortController();
  const { signal } = given;
  const parts = [
    sync(files.manifestPath),
    materialise(manifest, 'devices', reader, files.devicesPath, { signal }),
    bringDisk(manifest, reader, blankDiskPath, files.diskPath, signal),
    ...(paged ? [] : [materialise(manifest, 'memory', reader, files.pagesPath, { signal })]),
  ];
  try {
    await Promise.all(parts);
  } catch (error) {
    given.abort(error);
    await Promise.allSettled(parts);
    throw error;
  }
}

async function sync(path: string): Promise<void> {
  await using file = await open(path, 'r+');
  await file.sync();
}

async function bringDisk(
  manifest: Manifest,
  reader: FrameReader,
  blankDiskPath: string,
  diskPath: string,
  signal: AbortSignal,
): Promise<void> {
  const flatPath = `${diskPath}.flat`;
  await materialise(manifest, 'disk', reader, flatPath, { signal });
  if (hasFlatDisks(manifest.compatibility)) return await rename(flatPath, diskPath);
  await layerOfFlatDisk(flatPath, blankDiskPath, diskPath);
  await rm(flatPath);
}

async function recordOf(
  manifest: Manifest,
  dir: string,
  partialDir: string,
  paged: boolean,
): Promise<SnapshotRecord> {
  const { snapshotId, kind, names, source, parentId, depth, nonce, memoryMb, vcpus, compatibility, prime } =
    manifest;
  const pauseMs = pausesOf(manifest.facts);
  const { dirtyPages } = manifest.facts;
  return {
    format: recordFormat,
    ...{ snapshotId, kind, names, depth, dir, nonce, memoryMb, vcpus, compatibility },
    ...(source === undefined ? {} : { source }),
    ...(parentId === undefined ? {} : { parent: parentId }),
    ...(prime === undefined ? {} : { prime }),
    form: paged ? 'paged' : 'whole',
    createdAt: new Date(manifest.createdAtMs).toISOString(),
    ...(dirtyPages === undefined ? {} : { dirtyPages }),
    ...('total' in pauseMs ? { pauseMs } : {}),
    sizeBytes: await ownBytes(partialDir, []),
  };
}
