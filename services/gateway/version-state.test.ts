import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { advance, mayBecome, type VersionState, versionHops } from './version-state.ts';

const states = Object.keys(versionHops) as VersionState[];

describe('version states', () => {
  it('allow exactly these hops out of all pairs', () => {
    const allowed = states.flatMap((from) =>
      states.filter((to) => mayBecome(from, to)).map((to) => `${from} > ${to}`),
    );
    assert.deepEqual(allowed, [
      'building > ready',
      'building > failed',
      'ready > retired',
      'failed > retired',
    ]);
  });

  it('advance a copy, and throw on any other hop', () => {
    const record = { state: 'building' as VersionState };
    for (const from of states)
      for (const to of states)
        if (mayBecome(from, to)) assert.equal(advance({ state: from }, to).state, to);
        else assert.throws(() => advance({ state: from }, to), /cannot become/);
    assert.equal(record.state, 'building');
  });
});
