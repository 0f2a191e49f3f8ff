import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  checkExtents,
  ExtentBuilder,
  type ExtentTable,
  extentsOfRows,
  laidOver,
  piecesOf,
  sorted,
  storedPages,
  zeroFrame,
} from './extents.ts';

const pages = 64;

/** Ascending extents, some of them (in changes) of pages that became zero. */
const tableOf = (firstFrame: number, withZeros: boolean) =>
  fc
    .array(
      fc.record({
        gap: fc.nat(5),
        count: fc.integer({ min: 1, max: 6 }),
        frame: fc.nat(5),
        framePage: fc.nat(20),
        zero: fc.boolean(),
      }),
      { maxLength: 14 },
    )
    .map((parts) => {
      const builder = new ExtentBuilder();
      let at = 0;
      for (const { gap, count, frame, framePage, zero } of parts) {
        at += gap;
        if (at + count > pages) break;
        if (withZeros && zero) builder.add(at, count, zeroFrame, 0);
        else builder.add(at, count, firstFrame + frame, framePage);
        at += count;
      }
      return builder.table();
    });

/** Page by page, the slow and obvious way. */
function cellsOf(table: ExtentTable): (string | undefined)[] {
  const cells: (string | undefined)[] = Array.from({ length: pages });
  for (const [row, start] of table.startPage.entries())
    for (let at = 0; at < table.pageCount[row]!; at++)
      cells[start + at] =
        table.frame[row] === zeroFrame ? 'zero' : `${table.frame[row]}:${table.framePage[row]! + at}`;
  return cells;
}

describe('extents', () => {
  it('lays changes over a table as page by page', () => {
    fc.assert(
      fc.property(tableOf(0, false), tableOf(100, true), (below, changes) => {
        const expected = cellsOf(below);
        for (const [page, cell] of cellsOf(changes).entries())
          if (cell) expected[page] = cell === 'zero' ? undefined : cell;
        const result = laidOver(below, changes);
        assert.deepEqual(cellsOf(result), expected);
        assert.equal(storedPages(result), expected.filter(Boolean).length);
        checkExtents('memory', result, pages, () => 1000);
      }),
    );
  });

  it('finds every page in the pieces of any stretch', () => {
    fc.assert(
      fc.property(
        tableOf(0, false),
        fc.nat(pages - 1),
        fc.integer({ min: 1, max: pages }),
        (table, page, count) => {
          const cells = cellsOf(table);
          let next = page;
          for (const piece of piecesOf(table, page, count)) {
            assert.equal(piece.page, next, 'without a gap');
            for (let at = 0; at < piece.pageCount; at++)
              assert.equal(
                piece.frame < 0 ? undefined : `${piece.frame}:${piece.framePage + at}`,
                cells[piece.page + at],
              );
            next += piece.pageCount;
          }
          assert.equal(next, page + count);
        },
      ),
    );
  });

  it('sorts extents that came in any order', () => {
    fc.assert(
      fc.property(tableOf(0, true), fc.integer(), (table, seed) => {
        const order = [...table.startPage.keys()].sort((a, b) => ((a * 7919) ^ seed) - ((b * 7919) ^ seed));
        const rows = order.flatMap((row) => [
          table.startPage[row]!,
          table.pageCount[row]!,
          table.frame[row]!,
          table.framePage[row]!,
        ]);
        assert.deepEqual(sorted(extentsOfRows(rows)), table);
      }),
    );
  });

  it('refuses what is not a table of this image', () => {
    const refused = (rows: number[], why: RegExp) =>
      assert.throws(
        () => checkExtents('memory', extentsOfRows(rows), 100, (frame) => (frame < 2 ? 32 : undefined)),
        { code: 'snapshot-damaged', message: why },
      );
    refused([0, 10, 0, 0, 5, 10, 0, 0], /overlaps/);
    refused([50, 10, 0, 0, 5, 10, 0, 0], /out of order/);
    refused([0, 0, 0, 0], /empty/);
    refused([95, 6, 0, 0], /beyond the image/);
    refused([0, 10, 2, 0], /a frame that is not there/);
    refused([0, 10, 1, 23], /beyond its frame/);
    refused([0xffff_ffff, 0xffff_ffff, 0, 0], /beyond the image/);
  });
});
