import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Lease } from './lease.ts';
import { SimulatedVm } from './simulated-vm-factory.ts';

function newLease() {
  const ends: boolean[] = [];
  const vm = new SimulatedVm('snap-a', 256, 0, () => {});
  const lease = new Lease(vm, 'warm', 0, 1, (_, keep) => ends.push(keep));
  return { lease, ends };
}

test('only the first of release, discard and revoke counts', () => {
  const ways: Record<string, (lease: Lease) => void> = {
    release: (lease) => lease.release(),
    discard: (lease) => lease.discard(),
    revoke: (lease) => lease.revoke('gone'),
  };
  const expected: Record<string, boolean[]> = { release: [true], discard: [false], revoke: [] };
  for (const [first, end] of Object.entries(ways))
    for (const again of Object.values(ways)) {
      const { lease, ends } = newLease();
      end(lease);
      again(lease);
      assert.deepEqual(ends, expected[first]);
      assert.equal(lease.active, false);
      assert.equal(lease.vmEnded, first === 'revoke' ? 'gone' : undefined);
    }
});

test('using gives it back', () => {
  const { lease, ends } = newLease();
  {
    using held = lease;
    assert.ok(held.active);
  }
  assert.deepEqual(ends, [true]);
});

test('the signal aborts when the VM ends under the lease, whenever it was asked for', () => {
  const early = newLease().lease;
  const { signal } = early;
  assert.equal(signal.aborted, false);
  early.revoke('the VMM ended');
  assert.equal(signal.aborted, true);
  assert.equal(signal.reason.code, 'vm-died');
  const late = newLease().lease;
  late.revoke('the VMM ended');
  assert.match(late.signal.reason.message, /the VMM ended/);
});

test('the signal stays quiet after a release', () => {
  const { lease } = newLease();
  const { signal } = lease;
  lease.release();
  lease.revoke('later');
  assert.equal(signal.aborted, false);
});
