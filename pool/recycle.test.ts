import assert from 'node:assert/strict';
import { test } from 'node:test';
import { checkPolicy, type PoolPolicy, slotsOf, towardsFloor } from './recycle.ts';

const policy: PoolPolicy = { min: 1, max: 4, recycle: 'reuse', concurrency: 3 };

test('a fresh VM is never shared', () => {
  assert.equal(slotsOf(policy), 3);
  assert.equal(slotsOf({ ...policy, recycle: 'fresh' }), 1);
});

test('a leased VM counts towards the floor only where it comes back', () => {
  assert.equal(towardsFloor(policy, 1, 2), 3);
  assert.equal(towardsFloor({ ...policy, recycle: 'fresh' }, 1, 2), 1);
});

test('a policy that cannot hold is refused with its key', () => {
  checkPolicy(policy);
  checkPolicy({ ...policy, min: 0 });
  const bad: [Partial<PoolPolicy>, RegExp][] = [
    [{ min: -1 }, /min/],
    [{ min: 0.5 }, /min/],
    [{ min: 5 }, /min: expected a number not above max/],
    [{ max: 0, min: 0 }, /max/],
    [{ concurrency: 0 }, /concurrency/],
  ];
  for (const [change, message] of bad)
    assert.throws(() => checkPolicy({ ...policy, ...change }), { code: 'bad-config', message });
});
