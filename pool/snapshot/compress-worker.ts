// Owns the work of one compression thread: read runs, drop zero pages and pages equal to the parent's, seal the others
// in frames. Refuses to own order and upload (compress.ts). Runs in a worker thread, where blocking calls are fine.
// Invariant: no object per page; the same task gives the same frames.
import { closeSync, openSync, readSync } from 'node:fs';
import Piscina from 'piscina';
import { pageBytes } from './extents.ts';
import type { RunTable } from './run-table.ts';
import { hashBytes, pagesPerFrame, sealFrame } from './segment.ts';

export interface CompressTask {
  /** The last row may end inside a page: zeros fill it up. */
  runs: RunTable;
  /** What the parent has there; what it does not cover is zero. Undefined: nothing counts as equal. */
  parent: RunTable | undefined;
}

export const pageKinds = { zero: 0, equalToParent: 1, stored: 2 } as const;

export interface CompressResult {
  /** One of `pageKinds` a page, in the order of the task's runs. */
  kinds: Uint8Array;
  /** Frames of the stored pages in that order, `pagesPerFrame` each but for the last: their stored bytes on end. */
  stored: Uint8Array;
  storedBytes: Uint32Array;
  pageCounts: Uint32Array;
  sha256: Uint8Array;
}

/** Errors lose their class and code on the way between threads; this does not. */
export type CompressOutcome = CompressResult | { failed: { code: string; message: string } };

const zeroPage = Buffer.alloc(pageBytes);

export default function compressTask(task: CompressTask): CompressOutcome {
  try {
    const result = compress(task);
    const { kinds, stored, storedBytes, pageCounts, sha256 } = result;
    const buffers = [kinds, stored, storedBytes, pageCounts, sha256].map(({ buffer }) => buffer);
    const moved = { [Piscina.valueSymbol]: result, [Piscina.transferableSymbol]: buffers };
    return Piscina.move(moved as never) as never;
  } catch (error) {
    const { code = '', message } = error as NodeJS.ErrnoException;
    return { failed: { code, message } };
  }
}

export function compress({ runs, parent }: CompressTask): CompressResult {
  const layout = new TaskLayout(runs);
  const pages = read(runs, layout);
  const parentPages = parent && read(parent, layout);
  const kinds = new Uint8Array(layout.bytes / pageBytes);
  const frames = new Frames();
  for (let page = 0; page < kinds.length; page++) {
    const at = page * pageBytes;
    kinds[page] = kindOf(pages, parentPages, at);
    if (kinds[page] === pageKinds.stored) frames.add(pages, at);
  }
  return { kinds, ...frames.end() };
}

/** A page that is zero in both is zero: only a parent's page that was wiped needs to be said. */
function kindOf(pages: Buffer, parentPages: Buffer | undefined, at: number): number {
  const end = at + pageBytes;
  if (parentPages && pages.compare(parentPages, at, end, at, end) === 0) return pageKinds.equalToParent;
  return pages.compare(zeroPage, 0, pageBytes, at, end) === 0 ? pageKinds.zero : pageKinds.stored;
}

/** Where in the task's buffer each run stands: one after the other, from whole page to whole page. */
class TaskLayout {
  readonly bytes: number;
  readonly #imageOffsets: Float64Array;
  readonly #ends: Float64Array;
  readonly #starts: Float64Array;

  constructor(runs: RunTable) {
    this.#imageOffsets = runs.offsetBytes;
    this.#ends = new Float64Array(runs.file.length);
    this.#starts = new Float64Array(runs.file.length);
    let bytes = 0;
    for (let row = 0; row < runs.file.length; row++) {
      this.#starts[row] = bytes;
      this.#ends[row] = runs.offsetBytes[row]! + runs.sizeBytes[row]!;
      bytes += Math.ceil(runs.sizeBytes[row]! / pageBytes) * pageBytes;
    }
    this.bytes = bytes;
  }

  /** Rows come in the order of the task's: the search goes on from the row found last. */
  locate(offsetBytes: number, from: number): { row: number; at: number } {
    let row = from;
    while (this.#imageOffsets[row]! > offsetBytes || this.#ends[row]! <= offsetBytes) row++;
    return { row, at: this.#starts[row]! + offsetBytes - this.#imageOffsets[row]! };
  }
}

/** Runs that stand on end in the buffer and in the file come in one read. */
function read(table: RunTable, layout: TaskLayout): Buffer {
  const buffer = Buffer.alloc(layout.bytes);
  const descriptors = new Map<number, number>();
  try {
    let row = 0;
    let pending = { file: -1, at: 0, fileOffsetBytes: 0, sizeBytes: 0 };
    const flush = () => {
      if (pending.sizeBytes === 0) return;
      const path = table.paths[pending.file]!;
      let descriptor = descriptors.get(pending.file);
      if (descriptor === undefined) {
        descriptor = openSync(path, 'r');
        descriptors.set(pending.file, descriptor);
      }
      readFully(descriptor, path, buffer, pending);
    };
    for (let at = 0; at < table.file.length; at++) {
      const fileOffsetBytes = table.fileOffsetBytes[at]!;
      if (fileOffsetBytes < 0) continue;
      const place = layout.locate(table.offsetBytes[at]!, row);
      row = place.row;
      const sizeBytes = table.sizeBytes[at]!;
      const joins =
        table.file[at] === pending.file &&
        pending.at + pending.sizeBytes === place.at &&
        pending.fileOffsetBytes + pending.sizeBytes === fileOffsetBytes;
      if (joins) {
        pending.sizeBytes += sizeBytes;
      } else {
        flush();
        pending = { file: table.file[at]!, at: place.at, fileOffsetBytes, sizeBytes };
      }
    }
    flush();
  } finally {
    for (const descriptor of descriptors.values()) closeSync(descriptor);
  }
  return buffer;
}

function readFully(
  descriptor: number,
  path: string,
  buffer: Buffer,
  { at, fileOffsetBytes, sizeBytes }: { at: number; fileOffsetBytes: number; sizeBytes: number },
): void {
  for (let done = 0; done < sizeBytes; ) {
    const count = readSync(descriptor, buffer, at + done, sizeBytes - done, fileOffsetBytes + done);
    if (count === 0) throw Object.assign(new Error(`${path} ended early`), { code: 'ENDED' });
    done += count;
  }
}

class Frames {
  readonly #packed = Buffer.allocUnsafeSlow(pagesPerFrame * pageBytes);
  #packedPages = 0;
  readonly #stored: Buffer[] = [];
  readonly #pageCounts: number[] = [];
  readonly #sha256: Buffer[] = [];

  add(pages: Buffer, at: number): void {
    pages.copy(this.#packed, this.#packedPages * pageBytes, at, at + pageBytes);
    this.#packedPages += 1;
    if (this.#packedPages === pagesPerFrame) this.#seal();
  }

  #seal(): void {
    const { stored, sha256 } = sealFrame(this.#packed.subarray(0, this.#packedPages * pageBytes));
    this.#stored.push(stored);
    this.#sha256.push(sha256);
    this.#pageCounts.push(this.#packedPages);
    this.#packedPages = 0;
  }

  end(): Omit<CompressResult, 'kinds'> {
    if (this.#packedPages > 0) this.#seal();
    const storedBytes = Uint32Array.from(this.#stored, ({ length }) => length);
    const sha256 = new Uint8Array(this.#sha256.length * hashBytes);
    for (const [frame, digest] of this.#sha256.entries()) sha256.set(digest, frame * hashBytes);
    return {
      stored: onEnd(this.#stored),
      storedBytes,
      pageCounts: Uint32Array.from(this.#pageCounts),
      sha256,
    };
  }
}

/** In memory of its own, which can change threads without a copy. */
function onEnd(parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
