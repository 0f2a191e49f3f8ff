import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { lineageOf, treeOf } from './snapshot.ts';

const row = (snapshotId: string, parent: string | null) =>
  ({ snapshotId, parent }) as Parameters<typeof treeOf>[0][number];
const rows = [
  row('d', 'c'),
  row('e', 'b'),
  row('c', 'b'),
  row('b', 'a'),
  row('a', null),
  row('lost', 'gone'),
];
const shown = (tree: ReturnType<typeof treeOf>) => tree.map(({ row, depth }) => `${row.snapshotId}${depth}`);

describe('the tree of snapshots', () => {
  it('has parents before their children; a child of one that is gone is a root', () => {
    assert.deepEqual(shown(treeOf(rows)), ['a0', 'b1', 'e2', 'c2', 'd3', 'lost0']);
  });

  it('of one holds what it came from and what came from it, and no siblings', () => {
    assert.deepEqual(shown(lineageOf(rows, 'c')), ['a0', 'b1', 'c2', 'd3']);
    assert.deepEqual(shown(lineageOf(rows, 'lost')), ['lost0']);
  });

  it('may be as deep as there are snapshots', () => {
    const deep = Array.from({ length: 20_000 }, (_, at) => row(String(at), at === 0 ? null : String(at - 1)));
    assert.equal(treeOf(deep).at(-1)?.depth, 19_999);
  });
});
