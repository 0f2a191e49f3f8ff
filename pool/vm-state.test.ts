import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assertHop, canHop, vmStates } from './vm-state.ts';

const allowed = new Set([
  'restoring warm',
  'restoring gone',
  'warm leased',
  'warm ending',
  'leased warm',
  'leased ending',
  'ending gone',
  'ending lost',
]);

for (const from of vmStates)
  for (const to of vmStates)
    test(`${from} → ${to} is ${allowed.has(`${from} ${to}`) ? 'a hop' : 'refused'}`, () => {
      assert.equal(canHop(from, to), allowed.has(`${from} ${to}`));
      if (canHop(from, to)) assertHop(from, to);
      else assert.throws(() => assertHop(from, to), new RegExp(`from ${from} to ${to}`));
    });
