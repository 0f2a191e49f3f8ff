// Owns copying a disk file for a clone: shared blocks where the file system can (reflink), else the blocks that hold
// data and none of the holes between them. Refuses to own when (a clone's restore, a capture's pause).
// Invariant: the copy has the size and content of its source; a copy that failed leaves no file.
import { constants, copyFile, type FileHandle, open, rm } from 'node:fs/promises';
import koffi from 'koffi';
import { ThawError } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';

const seekData = 3;
const seekHole = 4;
const noSuchOffset = 6;
const noSpace = 28;

const libc = koffi.load(null);
const lseek = libc.func('int64_t lseek(int fd, int64_t offset, int whence)');
const copyFileRange = libc.func(
  'int64_t copy_file_range(int from, _Inout_ int64_t *fromAt, int to, _Inout_ int64_t *toAt, uint64_t sizeBytes, uint32_t flags)',
);

/** @param to absent before. @throws ThawError `no-space`. */
export async function cloneDisk(from: string, to: string): Promise<void> {
  try {
    await copyFile(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw error;
    await rm(to, { force: true });
    metrics.fallbacks.inc({ kind: 'disk-copy' });
    await copyData(from, to);
  }
}

async function copyData(from: string, to: string): Promise<void> {
  await using source = await open(from, 'r');
  await using target = await open(to, 'wx', 0o600);
  try {
    const { size } = await source.stat();
    await target.truncate(size);
    for (let at = seek(source, 0, seekData); at !== undefined; ) {
      const end = seek(source, at, seekHole)!;
      await copyRange(source, target, at, end - at);
      at = seek(source, end, seekData);
    }
  } catch (error) {
    await rm(to, { force: true });
    throw error;
  }
}

/** @returns undefined at the end of the file. */
function seek(file: FileHandle, offsetBytes: number, whence: number): number | undefined {
  const found = Number(lseek(file.fd, offsetBytes, whence));
  if (found >= 0) return found;
  const errno = koffi.errno();
  if (errno === noSuchOffset) return undefined;
  throw new ThawError('hypervisor-failed', `lseek failed with errno ${errno}`);
}

async function copyRange(
  source: FileHandle,
  target: FileHandle,
  offsetBytes: number,
  sizeBytes: number,
): Promise<void> {
  for (let done = 0; done < sizeBytes; ) {
    const at = offsetBytes + done;
    const copied = await inThread(source.fd, target.fd, at, sizeBytes - done);
    if (copied === 0) throw new ThawError('hypervisor-failed', 'the disk became shorter while it was copied');
    done += copied;
  }
}

function inThread(fromFd: number, toFd: number, at: number, sizeBytes: number): Promise<number> {
  return new Promise((resolve, reject) => {
    copyFileRange.async(fromFd, [at], toFd, [at], sizeBytes, 0, (error: Error | null, copied: number) => {
      if (error) return reject(error);
      if (Number(copied) >= 0) return resolve(Number(copied));
      // The other thread's errno stays there: the same call in this one tells it.
      const again = Number(copyFileRange(fromFd, [at], toFd, [at], sizeBytes, 0));
      if (again >= 0) resolve(again);
      else reject(copyFailure(koffi.errno()));
    });
  });
}

const copyFailure = (errno: number) =>
  new ThawError(
    errno === noSpace ? 'no-space' : 'hypervisor-failed',
    `the disk could not be copied: errno ${errno}`,
  );
