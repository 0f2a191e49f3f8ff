import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Capacity } from './capacity.ts';

test('memory and process count both limit', () => {
  const capacity = new Capacity({ memoryMb: 1000, vms: 2 });
  capacity.charge(600);
  assert.ok(capacity.fits(400));
  assert.ok(!capacity.fits(401));
  assert.throws(() => capacity.charge(401), /capacity exceeded/);
  capacity.charge(1);
  assert.ok(!capacity.fits(1), 'the third process');
  assert.deepEqual(capacity.used, { memoryMb: 601, vms: 2 });
  assert.deepEqual(capacity.free, { memoryMb: 399, vms: 0 });
});

test('what can never fit is told from what does not fit now', () => {
  const capacity = new Capacity({ memoryMb: 1000, vms: 1 });
  capacity.charge(1000);
  assert.ok(capacity.admits(1000));
  assert.ok(!capacity.fits(1000));
  assert.ok(!capacity.admits(1001));
});

test('a charge is given back once', () => {
  const capacity = new Capacity({ memoryMb: 1000, vms: 2 });
  capacity.charge(300);
  capacity.giveBack(300);
  assert.throws(() => capacity.giveBack(300), /given back twice/);
  assert.deepEqual(capacity.used, { memoryMb: 0, vms: 0 });
});
