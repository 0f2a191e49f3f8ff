// Owns what one VM holds of the snapshot it is of: hard links in its run directory to every file it was restored from
// and may be captured with. Refuses to own restoring. Invariant: they are of one snapshot in one form, and stay whole
// whatever becomes of its directory.
import { link, mkdir, rm } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import { cloneFilesDir, type SnapshotFiles, snapshotFilesIn } from '../host/paths.ts';
import type { CapturedFiles, PageDelta } from '../hypervisor/hypervisor.ts';
import { readDeltaRuns } from './delta-runs.ts';
import type { SnapshotLibrary } from './library.ts';
import type { PagedLease } from './paged-lease.ts';
import type { SnapshotRecord } from './record.ts';

export interface CloneFiles {
  /** As it was when the VM was restored. */
  record: SnapshotRecord;
  /** For the hypervisor. */
  from: CapturedFiles;
  delta: PageDelta | undefined;
  /** The links by their role in the snapshot. */
  links: SnapshotFiles;
  /** While its memory is served by a pager. */
  lease?: PagedLease;
}

/** The record names another form than the directory has only while it is being materialised. */
const tries = 3;

/** @throws ThawError `template-not-found` | `restore-failed`. */
export async function takeCloneFiles(
  library: SnapshotLibrary,
  snapshotId: string,
  runDir: string,
): Promise<CloneFiles> {
  const dir = cloneFilesDir(runDir);
  for (let attempt = 1; ; attempt++) {
    const record = await library.record(snapshotId);
    try {
      await mkdir(dir, { mode: 0o700 });
      return await take(library, record, dir);
    } catch (error) {
      await rm(dir, { recursive: true, force: true });
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      if (attempt === tries)
        throw new ThawError('restore-failed', `${snapshotId} lacks a file: ${(error as Error).message}`);
      library.forget(snapshotId);
    }
  }
}

async function take(library: SnapshotLibrary, record: SnapshotRecord, dir: string): Promise<CloneFiles> {
  const files = snapshotFilesIn(record.dir);
  const links = snapshotFilesIn(dir);
  const linked = (name: keyof SnapshotFiles) => link(files[name], links[name]);
  await Promise.all([linked('devicesPath'), linked('diskPath')]);
  const { devicesPath, diskPath } = links;
  if (record.form === 'paged') {
    const lease = await library.paged.lease(record);
    const from = { pagesPath: lease.path, devicesPath, diskPath };
    return { record, from, delta: undefined, links, lease };
  }
  if (record.form === 'whole') {
    await linked('pagesPath');
    return { record, from: { pagesPath: links.pagesPath, devicesPath, diskPath }, delta: undefined, links };
  }
  await Promise.all([linked('basePagesPath'), linked('deltaPath'), linked('deltaRunsPath')]);
  // A disk that is no layer stands for itself.
  await linked('baseDiskPath').catch(ignoreMissing);
  const runs = await readDeltaRuns(links.deltaRunsPath, record.memoryMb * 1024 * 1024);
  const from = { pagesPath: links.basePagesPath, devicesPath, diskPath };
  return { record, from, delta: { path: links.deltaPath, runs }, links };
}

/**
 * Fetches what a pager still serves, so that a capture finds a file it can build on; the VM runs meanwhile.
 * @throws ThawError `store-unavailable` | `snapshot-damaged` | `deadline-exceeded` | `no-space`.
 */
export async function completeCloneFiles(library: SnapshotLibrary, files: CloneFiles): Promise<CloneFiles> {
  const { record, lease, links, from } = files;
  if (!lease) return files;
  const { pagesPath } = links;
  await link(await library.paged.keep(record), pagesPath).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
  return { ...files, record: { ...record, form: 'whole' }, from: { ...from, pagesPath } };
}

function ignoreMissing(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT') throw error;
}
