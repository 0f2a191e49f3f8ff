// Owns what the kernel's page map says: which pages a process changed, as runs. Numbers in typed arrays, no object per page.
// Refuses to own reading it (copier.ts). Invariant: a page is in a run exactly when it is the process's own copy.
// Source: Documentation/admin-guide/mm/pagemap.rst (bit 63 present, bit 62 swapped, bit 61 page of a file or shared).
import type { PageRun } from '../hypervisor.ts';
import { pageBytes } from './mappings.ts';

/** Three numbers a run: address in the process, offset in the page file, size. */
export const runFields = 3;

export class RunList {
  #numbers = new Float64Array(256 * runFields);
  #length = 0;

  /** Appends, or lengthens the last run where this one follows it. */
  add(address: number, offsetBytes: number, sizeBytes: number): void {
    const last = this.#length - runFields;
    const lastSizeBytes = this.#numbers[last + 2]!;
    if (
      last >= 0 &&
      this.#numbers[last]! + lastSizeBytes === address &&
      this.#numbers[last + 1]! + lastSizeBytes === offsetBytes
    ) {
      this.#numbers[last + 2] = lastSizeBytes + sizeBytes;
      return;
    }
    if (this.#length === this.#numbers.length) {
      const larger = new Float64Array(this.#numbers.length * 2);
      larger.set(this.#numbers);
      this.#numbers = larger;
    }
    this.#numbers[this.#length] = address;
    this.#numbers[this.#length + 1] = offsetBytes;
    this.#numbers[this.#length + 2] = sizeBytes;
    this.#length += runFields;
  }

  /** A copy: safe to transfer. */
  numbers(): Float64Array<ArrayBuffer> {
    return this.#numbers.slice(0, this.#length);
  }
}

/**
 * Adds the changed pages among `count` page map entries; `entries` holds each as two halves, low first.
 * The first entry stands for the page at `address`, which is at `offsetBytes` of the page file.
 */
export function addDirtyRuns(
  runs: RunList,
  entries: Uint32Array,
  count: number,
  address: number,
  offsetBytes: number,
): void {
  let start = -1;
  for (let page = 0; page < count; page++) {
    // The top three bits: 2, 4 and 6 are present or swapped, and not the file's.
    const kind = entries[2 * page + 1]! >>> 29;
    if (kind !== 0 && (kind & 1) === 0) {
      if (start < 0) start = page;
    } else if (start >= 0) {
      runs.add(address + start * pageBytes, offsetBytes + start * pageBytes, (page - start) * pageBytes);
      start = -1;
    }
  }
  if (start >= 0)
    runs.add(address + start * pageBytes, offsetBytes + start * pageBytes, (count - start) * pageBytes);
}

export function bytesOf(runs: Float64Array): number {
  let sizeBytes = 0;
  for (let at = 2; at < runs.length; at += runFields) sizeBytes += runs[at]!;
  return sizeBytes;
}

/** The first runs, as many as are not larger than `sizeBytes` together. */
export function startOf(runs: Float64Array, sizeBytes: number): Float64Array {
  let end = 0;
  for (let total = 0; end < runs.length && total + runs[end + 2]! <= sizeBytes; end += runFields)
    total += runs[end + 2]!;
  return runs.subarray(0, end);
}

/** The first `sizeBytes` of the runs, and the rest; a run may be cut between the two. */
export function cutRuns(runs: Float64Array, sizeBytes: number): [Float64Array, Float64Array] {
  const start = startOf(runs, sizeBytes);
  const roomBytes = sizeBytes - bytesOf(start);
  if (start.length === runs.length || roomBytes === 0) return [start, runs.subarray(start.length)];
  const first = runs.slice(0, start.length + runFields);
  first[start.length + 2] = roomBytes;
  const rest = runs.slice(start.length);
  rest[0]! += roomBytes;
  rest[1]! += roomBytes;
  rest[2]! -= roomBytes;
  return [first, rest];
}

/** Cuts runs into `parts` lists of about equal bytes, in order; a run may be cut between two. */
export function shareRuns(runs: Float64Array, parts: number): Float64Array<ArrayBuffer>[] {
  const shareBytes = Math.ceil(bytesOf(runs) / pageBytes / parts) * pageBytes;
  const shares = [new RunList()];
  let roomBytes = shareBytes;
  for (let at = 0; at < runs.length; at += runFields) {
    let [address, offsetBytes, sizeBytes] = [runs[at]!, runs[at + 1]!, runs[at + 2]!];
    while (sizeBytes > 0) {
      if (roomBytes === 0) {
        shares.push(new RunList());
        roomBytes = shareBytes;
      }
      const takenBytes = Math.min(sizeBytes, roomBytes);
      shares.at(-1)!.add(address, offsetBytes, takenBytes);
      address += takenBytes;
      offsetBytes += takenBytes;
      sizeBytes -= takenBytes;
      roomBytes -= takenBytes;
    }
  }
  return shares.map((share) => share.numbers());
}

/** As the port tells them: neighbours are one run. */
export function pageRunsOf(runs: Float64Array): PageRun[] {
  const pageRuns: PageRun[] = [];
  for (let at = 0; at < runs.length; at += runFields) {
    const [offsetBytes, sizeBytes] = [runs[at + 1]!, runs[at + 2]!];
    const last = pageRuns.at(-1);
    if (last && last.offsetBytes + last.sizeBytes === offsetBytes) last.sizeBytes += sizeBytes;
    else pageRuns.push({ offsetBytes, sizeBytes });
  }
  return pageRuns;
}
