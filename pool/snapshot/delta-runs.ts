// Owns the file that tells where in guest memory the bytes of a delta belong: a header, then two numbers a run.
// Invariant: what is read ascends, does not overlap and lies within the guest; anything else is refused.
import { readFile, writeFile } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import type { PageRun } from '../hypervisor/hypervisor.ts';

const magic = 'THAWRUN1';
const pageBytes = 4096;

/** Makes the file durable. */
export async function writeDeltaRuns(path: string, runs: readonly PageRun[]): Promise<void> {
  const bytes = Buffer.alloc(magic.length + runs.length * 8);
  bytes.write(magic, 0, 'latin1');
  let at = magic.length;
  for (const { offsetBytes, sizeBytes } of runs) {
    bytes.writeUInt32LE(offsetBytes / pageBytes, at);
    bytes.writeUInt32LE(sizeBytes / pageBytes, at + 4);
    at += 8;
  }
  await writeFile(path, bytes, { flag: 'wx', flush: true, mode: 0o600 });
}

/** @throws ThawError `restore-failed` when the file is damaged. */
export async function readDeltaRuns(path: string, memoryBytes: number): Promise<PageRun[]> {
  const bytes = await readFile(path);
  const damaged = () => new ThawError('restore-failed', `${path} is damaged`);
  if (bytes.toString('latin1', 0, magic.length) !== magic || (bytes.length - magic.length) % 8 !== 0)
    throw damaged();
  const runs: PageRun[] = [];
  let endBytes = 0;
  for (let at = magic.length; at < bytes.length; at += 8) {
    const offsetBytes = bytes.readUInt32LE(at) * pageBytes;
    const sizeBytes = bytes.readUInt32LE(at + 4) * pageBytes;
    if (offsetBytes < endBytes || sizeBytes === 0 || offsetBytes + sizeBytes > memoryBytes) throw damaged();
    runs.push({ offsetBytes, sizeBytes });
    endBytes = offsetBytes + sizeBytes;
  }
  return runs;
}
