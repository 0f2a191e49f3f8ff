// Owns what one VM holds of the snapshot it is of: hard links in its run directory to every file it was restored from
// and may be captured with. Refuses to own restoring. Invariant: they are of one snapshot in one form, and stay whole
// whatever becomes of its directory.
import { link, mkdir, rm } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import { cloneFilesDir, type SnapshotFiles, snapshotFilesIn } from '../host/paths.ts';
import type { CapturedFiles, PageDelta } from '../hypervisor/hypervisor.ts';
import { readDeltaRuns } from './delta-runs.ts';
import type { SnapshotLibrary } from './library.ts';
import type { SnapshotRecord } from './record.ts';

export interface CloneFiles {
  /** As it was when the VM was restored. */
  record: SnapshotRecord;
  /** For the hypervisor. */
  from: CapturedFiles;
  delta: PageDelta | undefined;
  /** The links by their role in the snapshot. */
  links: SnapshotFiles;
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
      return await take(record, dir);
    } catch (error) {
      await rm(dir, { recursive: true, force: true });
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      if (attempt === tries)
        throw new ThawError('restore-failed', `${snapshotId} lacks a file: ${(error as Error).message}`);
      library.forget(snapshotId);
    }
  }
}

async function take(record: SnapshotRecord, dir: string): Promise<CloneFiles> {
  const files = snapshotFilesIn(record.dir);
  const links = snapshotFilesIn(dir);
  const linked = (name: keyof SnapshotFiles) => link(files[name], links[name]);
  await Promise.all([linked('devicesPath'), linked('diskPath')]);
  const { devicesPath, diskPath } = links;
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

function ignoreMissing(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT') throw error;
}
