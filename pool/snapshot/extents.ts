// Owns extent tables: which page of an image lies where in which frame, flattened over all ancestors.
// Refuses to own frames and bytes (segment.ts). Invariant: extents ascend, do not overlap and lie inside the image;
// a page that no extent covers is zero. Columns are typed arrays: a table has no object per page or extent.
import { ThawError } from '../../shared/errors.ts';

export const pageBytes = 4096;

/** Row `i`: pages `startPage[i]` to `startPage[i] + pageCount[i] - 1` are those from `framePage[i]` on of frame `frame[i]`. */
export interface ExtentTable {
  readonly startPage: Uint32Array;
  readonly pageCount: Uint32Array;
  readonly frame: Uint32Array;
  readonly framePage: Uint32Array;
}

/** A stretch of pages that stand together in one frame, or (`frame` -1) are zero. */
export interface Piece {
  page: number;
  pageCount: number;
  frame: number;
  framePage: number;
}

export const emptyExtents = (): ExtentTable => extentsOfRows(new Uint32Array(0));

/** @param rows four numbers an extent: startPage, pageCount, frame, framePage. */
export function extentsOfRows(rows: ArrayLike<number>): ExtentTable {
  const count = rows.length / 4;
  const column = (at: number) => Uint32Array.from({ length: count }, (_, row) => rows[row * 4 + at]!);
  return { startPage: column(0), pageCount: column(1), frame: column(2), framePage: column(3) };
}

export const pagesIn = (sizeBytes: number): number => Math.ceil(sizeBytes / pageBytes);

/** How many pages are stored, that is, not zero. */
export function storedPages(table: ExtentTable): number {
  let pages = 0;
  for (const count of table.pageCount) pages += count;
  return pages;
}

/** The row that covers `page`, else the first one after it (the table's length when there is none). */
export function rowAtOrAfter(table: ExtentTable, page: number): number {
  let low = 0;
  let high = table.startPage.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (table.startPage[middle]! + table.pageCount[middle]! <= page) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The stretches that make up `pageCount` pages from `page` on, in order and without a gap. */
export function* piecesOf(table: ExtentTable, page: number, pageCount: number): Generator<Piece> {
  const end = page + pageCount;
  let at = page;
  for (let row = rowAtOrAfter(table, page); at < end && row < table.startPage.length; row++) {
    const start = table.startPage[row]!;
    if (start >= end) break;
    if (start > at) yield { page: at, pageCount: start - at, frame: -1, framePage: 0 };
    const from = Math.max(start, at);
    const to = Math.min(start + table.pageCount[row]!, end);
    const framePage = table.framePage[row]! + (from - start);
    yield { page: from, pageCount: to - from, frame: table.frame[row]!, framePage };
    at = to;
  }
  if (at < end) yield { page: at, pageCount: end - at, frame: -1, framePage: 0 };
}

/** @throws ThawError `snapshot-damaged` when `table` is not one of an image of `imagePages` made of these frames. */
export function checkExtents(
  what: string,
  table: ExtentTable,
  imagePages: number,
  framePages: (frame: number) => number | undefined,
): void {
  const { startPage, pageCount, frame, framePage } = table;
  const rows = startPage.length;
  const refuse = (row: number, why: string) => {
    throw new ThawError('snapshot-damaged', `${what}: extent ${row} ${why}`);
  };
  if (pageCount.length !== rows || frame.length !== rows || framePage.length !== rows)
    refuse(rows, 'is not complete');
  let next = 0;
  for (let row = 0; row < rows; row++) {
    if (startPage[row]! < next) refuse(row, 'overlaps or is out of order');
    if (pageCount[row]! === 0) refuse(row, 'is empty');
    next = startPage[row]! + pageCount[row]!;
    if (next > imagePages) refuse(row, 'ends beyond the image');
    const pages = framePages(frame[row]!);
    if (pages === undefined) refuse(row, 'names a frame that is not there');
    else if (framePage[row]! + pageCount[row]! > pages) refuse(row, 'ends beyond its frame');
  }
}

/** Marks pages that became zero, in changes laid over a table. */
export const zeroFrame = 0xffff_ffff;

/** Collects extents in ascending order; neighbours that also stand together in a frame become one. */
export class ExtentBuilder {
  readonly #rows: number[] = [];

  add(startPage: number, pageCount: number, frame: number, framePage: number): void {
    const rows = this.#rows;
    const last = rows.length - 4;
    const follows = last >= 0 && rows[last]! + rows[last + 1]! === startPage && rows[last + 2] === frame;
    const inFrame = frame === zeroFrame || (follows && rows[last + 3]! + rows[last + 1]! === framePage);
    if (follows && inFrame) rows[last + 1]! += pageCount;
    else rows.push(startPage, pageCount, frame, framePage);
  }

  table(): ExtentTable {
    return extentsOfRows(this.#rows);
  }
}

/** `table` in ascending order of pages; its rows must not overlap. */
export function sorted(table: ExtentTable): ExtentTable {
  const order = Uint32Array.from(table.startPage.keys()).sort(
    (a, b) => table.startPage[a]! - table.startPage[b]!,
  );
  const builder = new ExtentBuilder();
  for (const row of order)
    builder.add(table.startPage[row]!, table.pageCount[row]!, table.frame[row]!, table.framePage[row]!);
  return builder.table();
}

/** `changes` over `below`; what `changes` marks with `zeroFrame` is in no extent of the result. Both ascend. */
export function laidOver(below: ExtentTable, changes: ExtentTable): ExtentTable {
  const builder = new ExtentBuilder();
  let page = 0;
  const copyBelowUpTo = (end: number) => {
    if (end <= page) return;
    for (let row = rowAtOrAfter(below, page); row < below.startPage.length; row++) {
      const start = Math.max(below.startPage[row]!, page);
      const stop = Math.min(below.startPage[row]! + below.pageCount[row]!, end);
      if (start >= end) break;
      const skipped = start - below.startPage[row]!;
      builder.add(start, stop - start, below.frame[row]!, below.framePage[row]! + skipped);
    }
  };
  for (let row = 0; row < changes.startPage.length; row++) {
    const start = changes.startPage[row]!;
    const count = changes.pageCount[row]!;
    copyBelowUpTo(start);
    if (changes.frame[row] !== zeroFrame)
      builder.add(start, count, changes.frame[row]!, changes.framePage[row]!);
    page = start + count;
  }
  copyBelowUpTo(Number.MAX_SAFE_INTEGER);
  return builder.table();
}

/** With `frame` replaced by what `frameOf` says. */
export function withFrames(table: ExtentTable, frameOf: (frame: number) => number): ExtentTable {
  return { ...table, frame: table.frame.map(frameOf) };
}
