// Owns an image's local content as one flat table: sources laid over each other, later ones winning.
// Invariant: rows ascend, do not overlap and are whole pages but for the image's end; columns are typed arrays.
import type { ImageSource, SourceRun } from './image-source.ts';

/** Row `i`: `sizeBytes[i]` from `offsetBytes[i]` on stand in `paths[file[i]]` at `fileOffsetBytes[i]`, or are zeros (-1). */
export interface RunTable {
  paths: string[];
  offsetBytes: Float64Array;
  sizeBytes: Float64Array;
  file: Int32Array;
  fileOffsetBytes: Float64Array;
}

type Row = SourceRun & { file: number };

export function flatten(sources: readonly ImageSource[], imageBytes: number): RunTable {
  let rows: Row[] = [];
  for (const [file, { runs }] of sources.entries()) rows = laidOver(rows, runs, file);
  return tableOf(
    sources.map(({ path }) => path),
    rows.filter(({ offsetBytes }) => offsetBytes < imageBytes),
    imageBytes,
  );
}

function tableOf(paths: string[], rows: readonly Row[], imageBytes: number): RunTable {
  const column = (of: (row: Row) => number) => Float64Array.from(rows, of);
  return {
    paths,
    offsetBytes: column((row) => row.offsetBytes),
    sizeBytes: column((row) => Math.min(row.sizeBytes, imageBytes - row.offsetBytes)),
    file: Int32Array.from(rows, (row) => row.file),
    fileOffsetBytes: column((row) => row.fileOffsetBytes),
  };
}

/** Both ascend: one walk over the two. */
function laidOver(below: readonly Row[], runs: readonly SourceRun[], file: number): Row[] {
  const rows: Row[] = [];
  let next = 0;
  let rest: Row | undefined = below[0];
  const takeBelowUpTo = (endBytes: number) => {
    while (rest && rest.offsetBytes < endBytes) {
      const left = rest.offsetBytes + rest.sizeBytes - endBytes;
      rows.push(left > 0 ? cut(rest, rest.offsetBytes, endBytes) : rest);
      rest = left > 0 ? cut(rest, endBytes, endBytes + left) : below[++next];
    }
  };
  const dropBelowUpTo = (endBytes: number) => {
    while (rest && rest.offsetBytes < endBytes) {
      const end = rest.offsetBytes + rest.sizeBytes;
      rest = end > endBytes ? cut(rest, endBytes, end) : below[++next];
    }
  };
  for (const run of runs) {
    takeBelowUpTo(run.offsetBytes);
    dropBelowUpTo(run.offsetBytes + run.sizeBytes);
    rows.push({ ...run, file });
  }
  takeBelowUpTo(Number.POSITIVE_INFINITY);
  return rows;
}

function cut(row: Row, fromBytes: number, toBytes: number): Row {
  const moved = fromBytes - row.offsetBytes;
  return {
    offsetBytes: fromBytes,
    sizeBytes: toBytes - fromBytes,
    fileOffsetBytes: row.fileOffsetBytes < 0 ? -1 : row.fileOffsetBytes + moved,
    file: row.file,
  };
}

/** The parts of `table` that lie in the runs of `within`, in the order of `within`; gaps are left out. */
export function restrictedTo(
  table: RunTable,
  within: Iterable<{ offsetBytes: number; sizeBytes: number }>,
): RunTable {
  const rows: Row[] = [];
  let at = 0;
  for (const { offsetBytes, sizeBytes } of within) {
    const end = offsetBytes + sizeBytes;
    at = firstRowEndingAfter(table, offsetBytes);
    for (; at < table.file.length && table.offsetBytes[at]! < end; at++) {
      const row = rowAt(table, at);
      const rowEnd = row.offsetBytes + row.sizeBytes;
      rows.push(cut(row, Math.max(row.offsetBytes, offsetBytes), Math.min(rowEnd, end)));
    }
  }
  return tableOf(table.paths, rows, Number.POSITIVE_INFINITY);
}

/** The parts of `table` outside the runs of `without`, which ascend. */
export function excluding(
  table: RunTable,
  without: Iterable<{ offsetBytes: number; sizeBytes: number }>,
): RunTable {
  const gaps: { offsetBytes: number; sizeBytes: number }[] = [];
  let at = 0;
  for (const { offsetBytes, sizeBytes } of without) {
    if (offsetBytes > at) gaps.push({ offsetBytes: at, sizeBytes: offsetBytes - at });
    at = offsetBytes + sizeBytes;
  }
  gaps.push({ offsetBytes: at, sizeBytes: Number.MAX_SAFE_INTEGER - at });
  return restrictedTo(table, gaps);
}

export const rowAt = (table: RunTable, row: number): Row => ({
  offsetBytes: table.offsetBytes[row]!,
  sizeBytes: table.sizeBytes[row]!,
  fileOffsetBytes: table.fileOffsetBytes[row]!,
  file: table.file[row]!,
});

function firstRowEndingAfter(table: RunTable, offsetBytes: number): number {
  let low = 0;
  let high = table.file.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (table.offsetBytes[middle]! + table.sizeBytes[middle]! <= offsetBytes) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The table in order, in pieces of at most `maxBytes`; a long row is cut at whole pieces. */
export function* sliced(table: RunTable, maxBytes: number): Generator<RunTable> {
  let rows: Row[] = [];
  let bytes = 0;
  const take = () => {
    const slice = tableOf(table.paths, rows, Number.POSITIVE_INFINITY);
    rows = [];
    bytes = 0;
    return slice;
  };
  for (let at = 0; at < table.file.length; at++) {
    let row = rowAt(table, at);
    while (bytes + row.sizeBytes > maxBytes) {
      const middle = row.offsetBytes + maxBytes - bytes;
      const end = row.offsetBytes + row.sizeBytes;
      if (middle > row.offsetBytes) rows.push(cut(row, row.offsetBytes, middle));
      row = cut(row, middle, end);
      yield take();
    }
    rows.push(row);
    bytes += row.sizeBytes;
  }
  if (rows.length > 0) yield take();
}

export const totalBytes = (table: RunTable): number => table.sizeBytes.reduce((sum, size) => sum + size, 0);
