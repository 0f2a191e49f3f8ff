// Owns how local files describe an image: which runs of it stand where in which file; whole, sparse, delta, qcow2 layer.
// Refuses to own reading the pages (compress-worker.ts). Invariant: runs ascend and do not overlap.
import { open, stat } from 'node:fs/promises';
import koffi from 'koffi';
import { ThawError } from '../../shared/errors.ts';
import type { PageDelta } from '../hypervisor/hypervisor.ts';
import { pageBytes } from './extents.ts';

/** A run of an image that stands in a local file: `fileOffsetBytes` there is `offsetBytes` of the image. */
export interface SourceRun {
  offsetBytes: number;
  sizeBytes: number;
  /** -1: the run is zeros, whatever lies below. */
  fileOffsetBytes: number;
}

/** Part of an image, in one file. Runs are whole pages, but for the image's end. */
export interface ImageSource {
  path: string;
  runs: readonly SourceRun[];
}

/** @throws ThawError `bad-request` when runs are not ascending whole pages inside an image of `imageBytes`. */
export function checkSource({ path, runs }: ImageSource, imageBytes: number): void {
  let nextBytes = 0;
  for (const { offsetBytes, sizeBytes } of runs) {
    const end = offsetBytes + sizeBytes;
    const whole = offsetBytes % pageBytes === 0 && (sizeBytes % pageBytes === 0 || end === imageBytes);
    if (!whole || sizeBytes <= 0 || offsetBytes < nextBytes || end > imageBytes)
      throw new ThawError(
        'bad-request',
        `${path}: the run of ${sizeBytes} bytes at ${offsetBytes} does not fit`,
      );
    nextBytes = end;
  }
}

/** A file that is the image, offset for offset. */
export async function wholeFileSource(path: string): Promise<ImageSource> {
  const { size } = await stat(path);
  return { path, runs: size === 0 ? [] : [{ offsetBytes: 0, sizeBytes: size, fileOffsetBytes: 0 }] };
}

export function deltaSource(delta: PageDelta): ImageSource {
  let fileOffsetBytes = 0;
  const runs = delta.runs.map(({ offsetBytes, sizeBytes }) => {
    const run = { offsetBytes, sizeBytes, fileOffsetBytes };
    fileOffsetBytes += sizeBytes;
    return run;
  });
  return { path: delta.path, runs };
}

const seekData = 3;
const seekHole = 4;
const noSuchData = 6;

/** As `wholeFileSource`, without its holes: what was never written costs nothing to read. */
export async function sparseFileSource(path: string): Promise<ImageSource> {
  await using file = await open(path, 'r');
  const { size } = await file.stat();
  const runs: SourceRun[] = [];
  for (let at = 0; at < size; ) {
    const data = seek(file.fd, at, seekData, path);
    if (data < 0) break;
    const start = data - (data % pageBytes);
    const hole = seek(file.fd, data, seekHole, path);
    const end = Math.min(size, Math.ceil(hole / pageBytes) * pageBytes);
    runs.push({ offsetBytes: start, sizeBytes: end - start, fileOffsetBytes: start });
    at = end;
  }
  return { path, runs };
}

type Lseek = (fd: number, offset: number, whence: number) => number;
let lseek: Lseek | undefined;

/** @returns -1 when only a hole follows. */
function seek(fd: number, offsetBytes: number, whence: number, path: string): number {
  // From the running binary, which exports all of libc.
  lseek ??= koffi.load(null).func('lseek', 'int64', ['int', 'int64', 'int']) as unknown as Lseek;
  const found = Number(lseek(fd, offsetBytes, whence));
  if (found >= 0) return found;
  const errno = koffi.errno();
  if (errno === noSuchData) return -1;
  throw new ThawError('internal', `looking for the data of ${path} failed: errno ${errno}`);
}
