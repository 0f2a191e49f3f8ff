// What the pool promises while VMs come up as they should, one behaviour per test, in virtual time.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { ThawError } from '../shared/errors.ts';
import { silentLog } from '../shared/log.ts';
import { metrics } from '../shared/metrics.ts';
import { Capacity } from './capacity.ts';
import type { Lease } from './lease.ts';
import { Pool } from './pool.ts';
import { assertLater, isLease, policy, poolTest, restored, vmOf } from './pool-for-tests.ts';
import { SimulatedVmFactory } from './simulated-vm-factory.ts';
import { startVirtualTime } from './virtual-time.ts';

describe('floors and ceilings', () => {
  poolTest(
    'configure fills the floor in the background, once',
    {},
    async ({ time, pool, factory, shelf }) => {
      pool.configure('a', policy({ min: 3 }));
      assert.equal(factory.asked.length, 0, 'nothing is started inside configure');
      await time.advance(20);
      pool.configure('a', policy({ min: 3 }));
      await time.advance(200);
      assert.equal(factory.asked.length, 3);
      assert.equal(shelf('a').vms.warm, 3);
    },
  );

  poolTest(
    'a warm lease is granted at once and costs no restore',
    {},
    async ({ time, pool, factory, look }) => {
      pool.configure('a', policy({ min: 1 }));
      await time.advance(20);
      const lease = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
      assert.equal(lease.tier, 'warm');
      assert.equal(lease.waitedMs, 0);
      lease.release();
      await time.advance(50);
      assert.equal(factory.asked.length, 1);
    },
  );

  poolTest('the ceiling holds while many wait', {}, async ({ time, pool, factory, shelf }) => {
    pool.configure('a', policy({ max: 2 }));
    const asked = Array.from({ length: 5 }, () => pool.acquire('a', { timeoutMs: 50 }));
    for (const each of asked) each.catch(() => {});
    await time.advance(40);
    assert.equal(factory.live.size, 2);
    assert.equal(shelf('a').waiting, 3);
    for (const each of asked.slice(2)) await assertLater(time, each, 20, 'no-capacity');
  });

  poolTest('fresh VMs are destroyed after one lease and replaced off the request path', {}, async (world) => {
    const { time, pool, factory, look, shelf } = world;
    pool.configure('a', policy({ min: 1, recycle: 'fresh' }));
    await time.advance(20);
    const lease = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
    assert.equal(factory.asked.length, 1, 'no restore inside acquire');
    await time.advance(20);
    assert.equal(shelf('a').vms.warm, 1, 'the next VM is ready while the first still serves');
    const { vmId } = lease.vm;
    lease.release();
    await time.advance(20);
    const next = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
    assert.notEqual(next.vm.vmId, vmId);
    next.release();
  });

  poolTest('VMs above the floor go after their idle time', { pool: { idleMs: 1000 } }, async (world) => {
    const { time, pool, factory, look, shelf } = world;
    pool.configure('a', policy({ min: 1 }));
    const leases = [pool.acquire('a', { timeoutMs: 50 }), pool.acquire('a', { timeoutMs: 50 })];
    await time.advance(20);
    for (const each of leases) isLease(await look(each)).release();
    await time.advance(990);
    assert.equal(shelf('a').vms.warm, 2);
    await time.advance(30);
    assert.equal(shelf('a').vms.warm, 1);
    await time.advance(5_000);
    assert.equal(factory.live.size, 1, 'the floor stays');
  });

  poolTest('a lowered ceiling ends idle VMs at once', {}, async ({ time, pool, factory, shelf }) => {
    pool.configure('a', policy({ min: 4 }));
    await time.advance(50);
    pool.configure('a', policy({ min: 1, max: 2 }));
    await time.advance(5);
    assert.equal(shelf('a').vms.warm, 2);
    assert.equal(factory.live.size, 2);
  });

  poolTest(
    'a policy that turns fresh drops VMs that have served',
    {},
    async ({ time, pool, look, shelf }) => {
      pool.configure('a', policy({ min: 1 }));
      await time.advance(20);
      const lease = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
      lease.release();
      pool.configure('a', policy({ min: 1, recycle: 'fresh' }));
      await time.advance(30);
      assert.equal(shelf('a').vms.warm, 1);
      const next = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
      assert.notEqual(next.vm.vmId, lease.vm.vmId);
    },
  );
});

describe('waiters', () => {
  poolTest('are served in the order they came', {}, async ({ time, pool, look }) => {
    pool.configure('a', policy({ max: 1 }));
    const order: number[] = [];
    const asked = [0, 1, 2].map((n) =>
      pool.acquire('a', { timeoutMs: 500 }).then((lease) => {
        order.push(n);
        return lease;
      }),
    );
    await time.advance(20);
    for (const each of asked) {
      isLease(await look(each)).release();
      await time.advance(1);
    }
    assert.deepEqual(order, [0, 1, 2]);
    assert.equal((await asked[0]!).tier, 'local', 'it was restored for the first');
    assert.equal((await asked[1]!).tier, 'warm', 'the others got it without a restore');
    assert.ok((await asked[1]!).waitedMs >= 20);
  });

  poolTest('one that gives up leaves the line and takes nothing', {}, async ({ time, pool, look, shelf }) => {
    pool.configure('a', policy({ max: 1 }));
    const held = await restored(time, pool.acquire('a', { timeoutMs: 50 }));
    const abort = new AbortController();
    const gaveUp = pool.acquire('a', { timeoutMs: 500, signal: abort.signal });
    const stayed = pool.acquire('a', { timeoutMs: 500 });
    abort.abort(new Error('client gone'));
    assert.match(String(await look(gaveUp)), /client gone/);
    assert.equal(shelf('a').waiting, 1);
    held.release();
    isLease(await look(stayed)).release();
    await assert.rejects(pool.acquire('a', { timeoutMs: 500, signal: abort.signal }), /client gone/);
  });

  poolTest('each has its own deadline', { factory: { plan: () => ({ restoreMs: 400 }) } }, async (world) => {
    const { time, pool, look } = world;
    pool.configure('a', policy());
    const [short, long] = [pool.acquire('a', { timeoutMs: 30 }), pool.acquire('a', { timeoutMs: 500 })];
    short.catch(() => {});
    await time.advance(29);
    assert.equal(await look(short), 'pending');
    await time.advance(2);
    await assert.rejects(short, { code: 'no-capacity', retryAfterSeconds: 1 });
    await time.advance(400);
    isLease(await look(long)).release();
  });

  poolTest(
    'row 14: a full line refuses with Retry-After',
    { pool: { maxWaiters: 2 } },
    async ({ pool, time, look }) => {
      pool.configure('a', policy());
      const asked = [pool.acquire('a', { timeoutMs: 500 }), pool.acquire('a', { timeoutMs: 500 })];
      await assert.rejects(pool.acquire('a', { timeoutMs: 500 }), {
        code: 'overloaded',
        retryAfterSeconds: 1,
      });
      await time.advance(20);
      for (const each of asked) isLease(await look(each)).release();
    },
  );

  poolTest(
    'come before floors, and snapshots take turns',
    { pool: { maxConcurrentRestores: 1 } },
    async (world) => {
      const { time, pool, factory } = world;
      pool.configure('floor', policy({ min: 2 }));
      pool.configure('a', policy());
      pool.configure('b', policy());
      for (const id of ['a', 'a', 'b', 'b']) pool.acquire(id, { timeoutMs: 500 }).catch(() => {});
      await time.advance(100);
      assert.deepEqual(factory.asked, ['a', 'b', 'a', 'b', 'floor', 'floor']);
    },
  );

  poolTest(
    'restores at one time are bounded over all snapshots',
    { pool: { maxConcurrentRestores: 3 } },
    async (w) => {
      w.pool.configure('a', policy({ min: 5 }));
      w.pool.configure('b', policy({ min: 5 }));
      for (let ms = 0; ms < 60; ms += 1) {
        await w.time.advance(1);
        assert.ok(w.factory.restoring <= 3);
      }
      assert.equal(w.factory.live.size, 10);
    },
  );

  poolTest('of an unknown snapshot are refused', {}, async ({ pool }) => {
    await assert.rejects(pool.acquire('nope', { timeoutMs: 10 }), { code: 'template-not-found' });
  });
});

describe('sharing', () => {
  poolTest(
    'one VM serves as many leases as its policy says',
    {},
    async ({ time, pool, factory, look, shelf }) => {
      pool.configure('a', policy({ concurrency: 3 }));
      const leases: Lease[] = [];
      const asked = Array.from({ length: 4 }, () => pool.acquire('a', { timeoutMs: 100 }));
      await time.advance(20);
      for (const each of asked) leases.push(isLease(await look(each)));
      assert.equal(factory.asked.length, 2, 'four leases need two VMs of three slots');
      assert.equal(new Set(leases.slice(0, 3).map((lease) => lease.vm.vmId)).size, 1);
      leases[0]!.release();
      assert.equal(shelf('a').vms.leased, 2);
      const again = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
      for (const lease of [...leases, again]) lease.release();
      assert.equal(shelf('a').vms.warm, 2);
    },
  );

  poolTest('a discarded VM takes no new lease and ends with its last one', {}, async (world) => {
    const { time, pool, factory, look } = world;
    pool.configure('a', policy({ concurrency: 2 }));
    const asked = [pool.acquire('a', { timeoutMs: 100 }), pool.acquire('a', { timeoutMs: 100 })];
    await time.advance(20);
    const [one, other] = [isLease(await look(asked[0]!)), isLease(await look(asked[1]!))];
    assert.equal(one.vm, other.vm);
    one.discard();
    await time.advance(5);
    assert.ok(factory.live.has(vmOf(other)), 'the other lease is unharmed');
    assert.equal(await look(pool.acquire('a', { timeoutMs: 1000 })), 'pending');
    other.release();
    await time.advance(5);
    assert.ok(!factory.live.has(vmOf(other)));
  });
});

describe('capacity', () => {
  const sizes = { memoryMbOf: (id: string) => (id === 'big' ? 1024 : 256) };

  poolTest('idle VMs above other floors make room, least recently used first', { vms: 3 }, async (world) => {
    const { time, pool, factory, shelf } = world;
    pool.configure('kept', policy({ min: 1 }));
    await time.advance(20);
    pool.configure('old', policy());
    pool.configure('new', policy());
    (await restored(time, pool.acquire('old', { timeoutMs: 50 }))).release();
    (await restored(time, pool.acquire('new', { timeoutMs: 50 }))).release();
    pool.configure('asked', policy());
    const lease = await restored(time, pool.acquire('asked', { timeoutMs: 50 }));
    assert.deepEqual([shelf('kept').vms.warm, shelf('old').vms.warm, shelf('new').vms.warm], [1, 0, 1]);
    assert.equal(factory.live.size, 3);
    lease.release();
  });

  poolTest('a floor below its target evicts nobody', { vms: 2 }, async ({ time, pool, look, shelf }) => {
    pool.configure('a', policy());
    const asked = [pool.acquire('a', { timeoutMs: 50 }), pool.acquire('a', { timeoutMs: 50 })];
    await time.advance(20);
    for (const each of asked) isLease(await look(each)).release();
    pool.configure('b', policy({ min: 2 }));
    await time.advance(100);
    assert.equal(shelf('a').vms.warm, 2);
    assert.equal(shelf('b').vms.warm, 0);
  });

  poolTest(
    'nothing is evicted where it would not be enough',
    { memoryMb: 1024, factory: sizes },
    async (world) => {
      const { time, pool, look, shelf } = world;
      pool.configure('small', policy({ min: 2 }));
      await time.advance(30);
      const extra = isLease(await look(pool.acquire('small', { timeoutMs: 50 })));
      pool.configure('big', policy());
      await assertLater(time, pool.acquire('big', { timeoutMs: 50 }), 60, 'no-capacity');
      assert.equal(shelf('small').vms.warm, 1);
      extra.release();
    },
  );

  poolTest(
    'room made for a big VM is not given to small ones',
    { memoryMb: 1024, factory: { ...sizes, destroyMs: 5 } },
    async ({ time, pool, look }) => {
      pool.configure('small', policy());
      const asked = Array.from({ length: 4 }, () => pool.acquire('small', { timeoutMs: 50 }));
      await time.advance(20);
      for (const each of asked) isLease(await look(each)).release();
      pool.configure('big', policy());
      pool.configure('other', policy());
      const big = pool.acquire('big', { timeoutMs: 500 });
      const other = pool.acquire('other', { timeoutMs: 40 });
      other.catch(() => {});
      await time.advance(20);
      isLease(await look(big));
      await assertLater(time, other, 40, 'no-capacity');
    },
  );

  poolTest(
    'a VM that fits on no such node is refused at once',
    { memoryMb: 512, factory: sizes },
    async (world) => {
      world.pool.configure('big', policy());
      await assert.rejects(world.pool.acquire('big', { timeoutMs: 60_000 }), { code: 'no-capacity' });
    },
  );
});

describe('forget and drain', () => {
  poolTest('forget ends idle VMs now, leased ones when given back, and those who wait', {}, async (world) => {
    const { time, pool, factory, look } = world;
    pool.configure('a', policy({ min: 2, max: 2 }));
    await time.advance(20);
    const leases = [
      isLease(await look(pool.acquire('a', { timeoutMs: 1 }))),
      isLease(await look(pool.acquire('a', { timeoutMs: 1 }))),
    ];
    const waiting = pool.acquire('a', { timeoutMs: 1000 });
    leases[1]!.release();
    isLease(await look(waiting)).release();
    const late = pool.acquire('a', { timeoutMs: 1000 });
    const held = isLease(await look(late));
    const refused = pool.acquire('a', { timeoutMs: 1000 });
    pool.forget('a');
    assert.equal(((await look(refused)) as ThawError).code, 'template-not-found');
    assert.equal(held.active, true);
    held.release();
    await time.advance(5);
    assert.equal(factory.live.size, 1);
    leases[0]!.release();
    await time.advance(5);
    assert.equal(factory.live.size, 0);
  });

  poolTest(
    'a restore under way for a forgotten snapshot is aborted',
    {},
    async ({ time, pool, factory, capacity }) => {
      pool.configure('a', policy({ min: 1 }));
      await time.advance(5);
      pool.forget('a');
      await time.advance(1);
      assert.equal(factory.restoring, 0);
      assert.equal(capacity.used.vms, 0);
    },
  );

  poolTest('drain refuses new work and waits for leases', {}, async ({ time, pool, factory, look }) => {
    pool.configure('a', policy({ min: 2 }));
    await time.advance(20);
    const lease = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
    const drained = pool.drain(1000);
    await assert.rejects(pool.acquire('a', { timeoutMs: 1 }), { code: 'shutting-down' });
    assert.throws(() => pool.configure('b', policy()), { code: 'shutting-down' });
    await time.advance(500);
    assert.equal(await look(drained), 'pending');
    assert.equal(factory.live.size, 1, 'the idle one has gone');
    lease.release();
    await time.advance(5);
    assert.equal(await look(drained), undefined);
  });

  poolTest('drain ends leases that outlast its deadline', {}, async ({ time, pool, factory, look }) => {
    pool.configure('a', policy({ min: 1 }));
    await time.advance(20);
    const lease = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
    const drained = pool.drain(100);
    await time.advance(110);
    assert.equal(await look(drained), undefined);
    assert.match(lease.vmEnded ?? '', /shuts down/);
    assert.equal(factory.live.size, 0);
  });
});

describe('what others see', () => {
  poolTest('epochs grow with every lease', {}, async ({ time, pool, look }) => {
    pool.configure('a', policy({ min: 1 }));
    await time.advance(20);
    const epochs: number[] = [];
    for (let n = 0; n < 3; n += 1) {
      const lease = isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
      epochs.push(lease.epoch);
      lease.release();
    }
    assert.deepEqual(epochs, [1, 2, 3]);
  });

  test("a VM's events reach the listener of the pool", async () => {
    using time = startVirtualTime();
    const factory = new SimulatedVmFactory();
    const heard: string[] = [];
    const pool = new Pool({
      factory,
      capacity: new Capacity({ memoryMb: 1024, vms: 4 }),
      log: silentLog,
      maxConcurrentRestores: 1,
      maxWaiters: 1,
      now: time.now,
      onVmEvent: (vm, event) => heard.push(`${vm.snapshotId} ${event.event}`),
    });
    pool.configure('a', policy({ min: 1 }));
    await time.advance(20);
    for (const vm of factory.live) vm.emit({ event: 'log', stream: 'stdout', line: 'hello', atMs: 0 });
    assert.deepEqual(heard, ['a log']);
    const drained = pool.drain(1);
    await time.advance(5);
    await drained;
  });

  poolTest('gauges follow the pool at each scrape', {}, async ({ time, pool, look }) => {
    pool.configure('a', policy({ min: 2 }));
    await time.advance(20);
    isLease(await look(pool.acquire('a', { timeoutMs: 1 })));
    const vms = Object.fromEntries(
      (await metrics.vms.get()).values.map(({ labels, value }) => [labels.state, value]),
    );
    assert.deepEqual(vms, { restoring: 0, warm: 1, leased: 1, ending: 0, lost: 0 });
    const warm = (await metrics.poolWarm.get()).values.map(({ labels, value }) => [labels.key, value]);
    assert.deepEqual(warm, [['a', 1]]);
  });
});
