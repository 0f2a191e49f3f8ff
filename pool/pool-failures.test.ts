// What the pool promises when restores fail and VMs end, one behaviour per test, in virtual time.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { ThawError } from '../shared/errors.ts';
import { silentLog } from '../shared/log.ts';
import { Capacity } from './capacity.ts';
import { Pool } from './pool.ts';
import { assertLater, failing, isLease, policy, poolTest, restored, vmOf } from './pool-for-tests.ts';
import { SimulatedVmFactory } from './simulated-vm-factory.ts';
import { startVirtualTime } from './virtual-time.ts';

describe('failures', () => {
  poolTest(
    'a VM that ends while warm is replaced and never handed out',
    {},
    async ({ time, pool, factory, look }) => {
      pool.configure('a', policy({ min: 1 }));
      await time.advance(20);
      const [dead] = factory.live;
      dead!.crash();
      await time.advance(30);
      const lease = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
      assert.notEqual(lease.vm, dead);
      assert.ok(dead!.destroyed, 'what is left of it was cleaned up');
      lease.release();
    },
  );

  poolTest('a VM that ends under its leases tells each of them', {}, async ({ time, pool, look }) => {
    pool.configure('a', policy({ concurrency: 2 }));
    const asked = [pool.acquire('a', { timeoutMs: 100 }), pool.acquire('a', { timeoutMs: 100 })];
    await time.advance(20);
    const leases = [isLease(await look(asked[0]!)), isLease(await look(asked[1]!))];
    const { signal } = leases[0]!;
    vmOf(leases[0]!).crash('the VMM ended (SIGKILL)');
    await time.advance(0);
    for (const lease of leases) assert.equal(lease.vmEnded, 'the VMM ended (SIGKILL)');
    assert.equal(signal.reason.code, 'vm-died');
    for (const lease of leases) lease.release();
  });

  poolTest(
    'one failed restore is retried at once for those who wait',
    { factory: { plan: failing((n) => n === 0) } },
    async ({ time, pool, look, shelf }) => {
      pool.configure('a', policy());
      const asked = pool.acquire('a', { timeoutMs: 500 });
      await time.advance(15);
      assert.equal(shelf('a').failures, 1);
      await time.advance(15);
      isLease(await look(asked)).release();
      assert.equal(shelf('a').failures, 0);
    },
  );

  poolTest(
    'restores that fail again and again are refused, slowed down, and recover',
    { factory: { plan: failing((n) => n < 5) } },
    async ({ time, pool, factory, shelf }) => {
      pool.configure('a', policy({ min: 1 }));
      await assertLater(time, pool.acquire('a', { timeoutMs: 60_000 }), 30, 'restore-failed');
      assert.equal(factory.asked.length, 2);
      assert.ok(shelf('a').backoffMs > 200 && shelf('a').backoffMs <= 250);
      await assertLater(time, pool.acquire('a', { timeoutMs: 60_000 }), 5, 'restore-failed');
      assert.equal(factory.asked.length, 2, 'nobody restores while it backs off');
      await time.advance(250 + 500 + 1000 + 50);
      assert.equal(factory.asked.length, 5);
      assert.equal(shelf('a').failures, 5);
      await time.advance(2000 + 50);
      assert.equal(shelf('a').vms.warm, 1);
      assert.deepEqual([shelf('a').failures, shelf('a').backoffMs, shelf('a').lastError], [0, 0, undefined]);
    },
  );

  poolTest(
    'the backoff has an end',
    { factory: { plan: failing(() => true) } },
    async ({ time, pool, shelf }) => {
      pool.configure('a', policy({ min: 1 }));
      for (let minute = 0; minute < 5; minute += 1) {
        await time.advance(60_000);
        assert.ok(shelf('a').backoffMs <= 30_000);
      }
      assert.ok(shelf('a').failures > 10);
    },
  );

  poolTest(
    'those who wait keep waiting while a leased VM may come back',
    { factory: { plan: failing((n) => n > 0) } },
    async ({ time, pool, look }) => {
      pool.configure('a', policy());
      const held = await restored(time, pool.acquire('a', { timeoutMs: 50 }));
      const asked = pool.acquire('a', { timeoutMs: 5000 });
      await time.advance(100);
      assert.equal(await look(asked), 'pending');
      held.release();
      isLease(await look(asked)).release();
    },
  );

  poolTest(
    'what retrying cannot mend keeps its own error',
    { factory: { plan: () => ({ restoreMs: 1, error: new ThawError('incompatible', 'other CPU') }) } },
    async ({ time, pool, factory }) => {
      pool.configure('a', policy());
      await assertLater(time, pool.acquire('a', { timeoutMs: 1000 }), 10, 'incompatible');
      assert.equal(factory.asked.length, 1);
    },
  );

  poolTest(
    'VMs that end before they serve count like failed restores',
    {},
    async ({ time, pool, factory, shelf }) => {
      pool.configure('a', policy({ min: 1 }));
      for (let n = 0; n < 1000; n += 1) {
        await time.advance(1);
        for (const vm of factory.live) vm.crash();
      }
      assert.ok(factory.asked.length < 8, `${factory.asked.length} restores in a second`);
      assert.ok(shelf('a').failures >= 3);
    },
  );

  poolTest(
    'a restore that never ends is aborted',
    { pool: { restoreTimeoutMs: 100 }, factory: { plan: () => ({ restoreMs: 1_000_000 }) } },
    async ({ time, pool, capacity }) => {
      pool.configure('a', policy());
      await assertLater(time, pool.acquire('a', { timeoutMs: 60_000 }), 250, 'restore-failed');
      await time.advance(1);
      assert.equal(capacity.used.vms, 0);
    },
  );

  test('a VM that cannot be destroyed stays charged and is told of', async () => {
    using time = startVirtualTime();
    const factory = new SimulatedVmFactory();
    const capacity = new Capacity({ memoryMb: 1024, vms: 4 });
    const limits = { maxConcurrentRestores: 1, maxWaiters: 1 };
    const pool = new Pool({ factory, capacity, log: silentLog, now: time.now, ...limits });
    pool.configure('a', policy({ min: 1 }));
    await time.advance(20);
    const [vm] = factory.live;
    vm!.destroy = () => Promise.reject(new Error('stuck in the kernel'));
    pool.forget('a');
    await time.advance(5);
    assert.equal(pool.stats().vms.lost, 1);
    assert.equal(capacity.used.vms, 1);
    const drained = pool.drain(10);
    drained.catch(() => {});
    await time.advance(20_000);
    await assert.rejects(drained, { code: 'deadline-exceeded' });
  });
});
