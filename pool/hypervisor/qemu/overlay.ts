// Owns making an empty qcow2 overlay of a captured disk without starting a program: qemu-img formats one empty
// overlay per disk size, and each clone's is those bytes with its own backing path written into the header.
// Invariant: cost per clone is one small write, whatever the disk holds.
// Source: header layout in QEMU's docs/interop/qcow2.txt (backing_file_offset 8, backing_file_size 16, size 24).
import { execFile } from 'node:child_process';
import { open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { ThawError } from '../../../shared/errors.ts';

const run = promisify(execFile);
const maxBackingPathBytes = 1023;
const emptyOverlays = new Map<string, Promise<Buffer>>();

export type DiskFormat = 'raw' | 'qcow2';

export async function createOverlay(
  path: string,
  backingPath: string,
  backingFormat: DiskFormat,
): Promise<void> {
  const sizeBytes = await virtualSizeBytes(backingPath, backingFormat);
  const key = `${backingFormat}:${sizeBytes}`;
  let empty = emptyOverlays.get(key);
  if (!empty) {
    empty = formatEmptyOverlay(path, backingFormat, sizeBytes);
    emptyOverlays.set(key, empty);
    empty.catch(() => emptyOverlays.delete(key));
  }
  await writeFile(path, withBacking(await empty, backingPath), { mode: 0o600 });
}

function withBacking(empty: Buffer, backingPath: string): Buffer {
  const name = Buffer.from(backingPath);
  if (name.length > maxBackingPathBytes)
    throw new ThawError('bad-config', `the path ${backingPath} is too long for a disk`);
  const overlay = Buffer.from(empty);
  name.copy(overlay, Number(overlay.readBigUInt64BE(8)));
  overlay.writeUInt32BE(name.length, 16);
  return overlay;
}

async function virtualSizeBytes(path: string, format: DiskFormat): Promise<number> {
  if (format === 'raw') return (await stat(path)).size;
  await using file = await open(path, 'r');
  const header = Buffer.alloc(32);
  await file.read(header, 0, header.length, 0);
  if (header.toString('latin1', 0, 3) !== 'QFI')
    throw new ThawError('hypervisor-failed', `${path} is not a qcow2 disk`);
  return Number(header.readBigUInt64BE(24));
}

async function formatEmptyOverlay(
  path: string,
  backingFormat: DiskFormat,
  sizeBytes: number,
): Promise<Buffer> {
  const scratch = `${path}.empty`;
  try {
    // -u: the name given here is a placeholder that is never opened.
    await run('qemu-img', [
      'create',
      '-q',
      '-u',
      '-f',
      'qcow2',
      '-b',
      '/x',
      '-F',
      backingFormat,
      scratch,
      String(sizeBytes),
    ]);
    return await readFile(scratch);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new ThawError('missing-package', 'qemu-img is not installed: apt-get install qemu-utils');
    throw new ThawError(
      'hypervisor-failed',
      `qemu-img create: ${(error as { stderr?: string }).stderr ?? error}`,
    );
  } finally {
    await rm(scratch, { force: true });
  }
}
