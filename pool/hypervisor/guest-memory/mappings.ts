// Owns where a process has a file in its memory: the lines of /proc/PID/maps that name it.
// Refuses to own what is in those pages (dirty-runs.ts).
// Invariant: mappings are ascending by their place in the file and no two show the same part of it.
import { readFile } from 'node:fs/promises';
import { ThawError } from '../../../shared/errors.ts';

export const pageBytes = 4096;

export interface Mapping {
  /** Where it starts in the process. */
  address: number;
  /** Where it starts in the file. */
  offsetBytes: number;
  sizeBytes: number;
}

/** @throws ThawError `hypervisor-failed` when the process has the file not mapped privately, or is gone. */
export async function mappingsOf(pid: number, path: string): Promise<Mapping[]> {
  const maps = await readFile(`/proc/${pid}/maps`, 'utf8').catch((error: Error) => {
    throw new ThawError('hypervisor-failed', `the memory of process ${pid} cannot be read: ${error.message}`);
  });
  const mappings = parseMappings(maps, path);
  if (mappings.length === 0)
    throw new ThawError('hypervisor-failed', `process ${pid} has no private mapping of ${path}`);
  return mappings;
}

/** The private, writable mappings of `path`; the kernel adds ` (deleted)` once the name is gone or given to another file. */
export function parseMappings(maps: string, path: string): Mapping[] {
  const mappings: Mapping[] = [];
  for (const line of maps.split('\n')) {
    const fields = /^([0-9a-f]+)-([0-9a-f]+) .w.p ([0-9a-f]+) \S+ \d+ +(\/.*)$/.exec(line);
    if (fields?.[4] !== path && fields?.[4] !== `${path} (deleted)`) continue;
    const [start, end, offset] = fields.slice(1, 4).map((text) => Number.parseInt(text, 16));
    mappings.push({ address: start!, offsetBytes: offset!, sizeBytes: end! - start! });
  }
  mappings.sort((a, b) => a.offsetBytes - b.offsetBytes);
  for (const [index, mapping] of mappings.entries()) {
    const next = mappings[index + 1];
    // Two private copies of one page would be two truths.
    if (next && mapping.offsetBytes + mapping.sizeBytes > next.offsetBytes)
      throw new ThawError('hypervisor-failed', `${path} is mapped twice`);
  }
  return mappings;
}

/** Cuts the mappings into `parts` lists of about equal size, in order. */
export function shareOut(mappings: readonly Mapping[], parts: number): Mapping[][] {
  const totalPages = mappings.reduce((sum, mapping) => sum + mapping.sizeBytes, 0) / pageBytes;
  const shareBytes = Math.ceil(totalPages / parts) * pageBytes;
  const shares: Mapping[][] = [[]];
  let roomBytes = shareBytes;
  for (let { address, offsetBytes, sizeBytes } of mappings)
    while (sizeBytes > 0) {
      if (roomBytes === 0) {
        shares.push([]);
        roomBytes = shareBytes;
      }
      const takenBytes = Math.min(sizeBytes, roomBytes);
      shares.at(-1)!.push({ address, offsetBytes, sizeBytes: takenBytes });
      address += takenBytes;
      offsetBytes += takenBytes;
      sizeBytes -= takenBytes;
      roomBytes -= takenBytes;
    }
  return shares;
}
