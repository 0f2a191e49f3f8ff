// Owns turning a snapshot that is what changed over a base into one that stands for itself: a page file of its own that
// clones map and share, and a disk over the empty one. Refuses to own when (library.ts).
// Invariant: at every moment the directory is a whole snapshot in the form its record names; a crash leaves what the
// next try replaces.
import { execFile } from 'node:child_process';
import { open, rename, rm } from 'node:fs/promises';
import { promisify } from 'node:util';
import { withDeadline } from '../../shared/deadline.ts';
import { type SnapshotFiles, snapshotFilesIn } from '../host/paths.ts';
import { mergeLayers } from '../hypervisor/disk-layer/layers.ts';
import { pasteIntoFile } from '../hypervisor/guest-memory/delta-paste.ts';
import { readDeltaRuns } from './delta-runs.ts';
import { isDiskLayer } from './disk-form.ts';
import { ownBytes, type SnapshotRecord, writeRecord } from './record.ts';

const run = promisify(execFile);
const copyTimeoutMs = 300_000;

/** @param onWhole called as soon as the record is replaced, before what the old form needed is removed. */
export async function materialise(
  record: SnapshotRecord,
  onWhole: (record: SnapshotRecord) => void,
): Promise<void> {
  const files = snapshotFilesIn(record.dir);
  await makePages(record, files);
  await makeDisk(record, files);
  const { base: _base, ...rest } = record;
  const old = [files.basePagesPath, files.baseDiskPath, files.deltaPath, files.deltaRunsPath];
  const whole: SnapshotRecord = { ...rest, form: 'whole', sizeBytes: await ownBytes(record.dir, old) };
  await writeRecord(record.dir, whole);
  onWhole(whole);
  for (const path of old) await rm(path, { force: true });
}

async function makePages(record: SnapshotRecord, files: SnapshotFiles): Promise<void> {
  const partialPath = `${files.pagesPath}.partial`;
  await rm(partialPath, { force: true });
  await copySparse(files.basePagesPath, partialPath);
  const runs = await readDeltaRuns(files.deltaRunsPath, record.memoryMb * 1024 * 1024);
  await pasteIntoFile(partialPath, { path: files.deltaPath, runs });
  await using file = await open(partialPath, 'r+');
  await file.sync();
  await rename(partialPath, files.pagesPath);
}

/** The merged disk may take its place before the record changes: over either base it is the same disk. */
async function makeDisk({ compatibility }: SnapshotRecord, files: SnapshotFiles): Promise<void> {
  if (!(await isDiskLayer(compatibility, files.diskPath))) return;
  const partialPath = `${files.diskPath}.partial`;
  await rm(partialPath, { force: true });
  await mergeLayers(partialPath, files.baseDiskPath, files.diskPath);
  await rename(partialPath, files.diskPath);
}

export async function copySparse(from: string, to: string): Promise<void> {
  const copy = run('cp', ['--sparse=always', '--reflink=auto', '--', from, to]);
  await withDeadline(`the copy of ${from}`, copyTimeoutMs, copy);
}
