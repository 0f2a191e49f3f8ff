// Tests the page map's bits and runs against a plain reading of them, page by page.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { array, constantFrom, assert as holds, integer, property } from 'fast-check';
import { addDirtyRuns, bytesOf, cutRuns, pageRunsOf, RunList, runFields, shareRuns } from './dirty-runs.ts';
import { pageBytes } from './mappings.ts';

const bit = (position: number) => 2 ** (position - 32);
const kinds = {
  absent: 0,
  ofTheFile: bit(63) + bit(61),
  ownCopy: bit(63),
  ownCopyOnlyHere: bit(63) + bit(56),
  swappedOut: bit(62),
  swappedOutShared: bit(62) + bit(61),
  softDirtyBitOnly: bit(55),
};
const changed = new Set([kinds.ownCopy, kinds.ownCopyOnlyHere, kinds.swappedOut]);
const anyKind = constantFrom(...Object.values(kinds));

function runsOf(pages: number[], address = 0x7f0000000000, offsetBytes = 0): Float64Array {
  const entries = new Uint32Array(pages.length * 2);
  for (const [page, high] of pages.entries()) entries.set([0xdeadbeef, high], page * 2);
  const runs = new RunList();
  addDirtyRuns(runs, entries, pages.length, address, offsetBytes);
  return runs.numbers();
}

describe('runs of changed pages', () => {
  it('hold exactly the pages that are the process’s own', () => {
    holds(
      property(array(anyKind, { maxLength: 600 }), (pages) => {
        const runs = runsOf(pages, 0x7f0000000000, 8 * pageBytes);
        const found = new Set<number>();
        for (let at = 0; at < runs.length; at += runFields) {
          assert.equal(runs[at]! - 0x7f0000000000, runs[at + 1]! - 8 * pageBytes);
          for (let done = 0; done < runs[at + 2]!; done += pageBytes)
            found.add((runs[at + 1]! + done) / pageBytes - 8);
        }
        const expected = pages.flatMap((kind, page) => (changed.has(kind) ? [page] : []));
        assert.deepEqual([...found], expected);
      }),
    );
  });

  it('join where one list ends and the next begins', () => {
    const runs = new RunList();
    runs.add(0x1000, 0, 0x1000);
    runs.add(0x2000, 0x1000, 0x2000);
    runs.add(0x9000, 0x3000, 0x1000);
    assert.deepEqual([...runs.numbers()], [0x1000, 0, 0x3000, 0x9000, 0x3000, 0x1000]);
    assert.deepEqual(pageRunsOf(runs.numbers()), [{ offsetBytes: 0, sizeBytes: 0x4000 }]);
  });

  it('grow past the first allocation', () => {
    const runs = runsOf(Array.from({ length: 4000 }, (_, page) => (page % 2 ? kinds.ownCopy : 0)));
    assert.equal(runs.length, 2000 * runFields);
    assert.equal(bytesOf(runs), 2000 * pageBytes);
  });

  it('are shared out in order, about equal, and whole', () => {
    holds(
      property(array(anyKind, { maxLength: 300 }), integer({ min: 1, max: 5 }), (pages, parts) => {
        const runs = runsOf(pages);
        const shares = shareRuns(runs, parts);
        assert.ok(shares.length <= parts);
        assert.deepEqual(
          pageRunsOf(Float64Array.from(shares.flatMap((share) => [...share]))),
          pageRunsOf(runs),
        );
        const sizes = shares.map((share) => bytesOf(share) / pageBytes);
        assert.ok(Math.max(...sizes) <= Math.ceil(bytesOf(runs) / pageBytes / parts));
      }),
    );
  });

  it('are cut where the room ends, and nothing is lost', () => {
    holds(
      property(array(anyKind, { maxLength: 300 }), integer({ min: 0, max: 320 }), (pages, roomPages) => {
        const runs = runsOf(pages);
        const [first, rest] = cutRuns(runs, roomPages * pageBytes);
        assert.equal(bytesOf(first), Math.min(bytesOf(runs), roomPages * pageBytes));
        assert.deepEqual(pageRunsOf(Float64Array.from([...first, ...rest])), pageRunsOf(runs));
      }),
    );
  });
});
