// The pool under random interleavings of requests, crashes, aborts, failures and policy changes, in virtual time.
// What must hold is checked from outside, by the factory's and the callers' own books, at every millisecond.
// A failure prints its seed; THAW_SEED replays one, THAW_RUNS sets how many.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { ThawError } from '../shared/errors.ts';
import { silentLog } from '../shared/log.ts';
import { Capacity } from './capacity.ts';
import type { Lease } from './lease.ts';
import { Pool, type PoolPolicy } from './pool.ts';
import { restoreError, type SimulatedVm, SimulatedVmFactory } from './simulated-vm-factory.ts';
import { startVirtualTime, type VirtualTime } from './virtual-time.ts';

const keys = ['shared', 'plain', 'fresh', 'big'] as const;
type Key = (typeof keys)[number];

const policies: Record<Key, PoolPolicy> = {
  shared: { min: 1, max: 3, recycle: 'reuse', concurrency: 3 },
  plain: { min: 2, max: 6, recycle: 'reuse', concurrency: 1 },
  fresh: { min: 1, max: 4, recycle: 'fresh', concurrency: 1 },
  big: { min: 0, max: 2, recycle: 'reuse', concurrency: 1 },
};
const memoryMbOf = (key: string) => (key === 'big' ? 1024 : 256);
// The floors fit (4 VMs, 1024 MB); everything the ceilings allow does not.
const limits = { memoryMb: 2048, vms: 7 };
const maxConcurrentRestores = 2;
const maxWaiters = 12;
const idleMs = 200;
/** Longer than the longest backoff and idle time together. */
const quietMs = 31_000;

const key = fc.constantFrom(...keys);
const step = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      op: fc.constant('acquire' as const),
      key,
      timeoutMs: fc.integer({ min: 1, max: 120 }),
      holdMs: fc.integer({ min: 0, max: 60 }),
      abortAfterMs: fc.option(fc.nat({ max: 60 }), { freq: 5, nil: undefined }),
      discard: fc.integer({ min: 0, max: 5 }).map((n) => n === 0),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({ op: fc.constant('advance' as const), elapsedMs: fc.nat({ max: 30 }) }),
  },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('crash' as const), index: fc.nat({ max: 6 }) }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('forget' as const), key }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('configure' as const), key }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;
type Acquire = Extract<Step, { op: 'acquire' }>;

const restorePlan = fc.array(
  fc.record({ restoreMs: fc.nat({ max: 40 }), fails: fc.integer({ min: 0, max: 4 }).map((n) => n === 0) }),
  { minLength: 1, maxLength: 40 },
);

interface Caller {
  key: Key;
  /** Grows when its snapshot is forgotten: callers of different lives of a key do not share a line. */
  life: number;
  deadlineMs: number;
  settled: boolean;
}

class Simulation {
  readonly time: VirtualTime;
  readonly factory: SimulatedVmFactory;
  readonly capacity = new Capacity(limits);
  readonly pool: Pool;
  readonly served = new Set<Key>();
  readonly lives = new Map<Key, number>();
  readonly callers: Caller[] = [];
  readonly leasesOf = new Map<SimulatedVm, number>();
  readonly everLeased = new Set<SimulatedVm>();
  readonly crashedAtMs = new Map<SimulatedVm, number>();
  lastEpoch = 0;
  broken: unknown;

  constructor(time: VirtualTime, plan: { restoreMs: number; fails: boolean }[]) {
    this.time = time;
    let restores = 0;
    this.factory = new SimulatedVmFactory({
      memoryMbOf,
      destroyMs: 3,
      // Beyond the plan every restore is good: the world calms down.
      plan: () => {
        const { restoreMs, fails } = plan[restores] ?? { restoreMs: 5, fails: false };
        restores += 1;
        return { restoreMs, ...(fails ? { error: restoreError() } : {}) };
      },
    });
    this.pool = new Pool({
      factory: this.factory,
      capacity: this.capacity,
      log: silentLog,
      maxConcurrentRestores,
      maxWaiters,
      idleMs,
      now: time.now,
    });
  }

  async run(step: Step): Promise<void> {
    if (step.op === 'acquire') this.acquire(step);
    else if (step.op === 'advance') await this.advance(step.elapsedMs);
    else if (step.op === 'crash') this.crash(step.index);
    else if (step.op === 'configure') {
      this.served.add(step.key);
      this.pool.configure(step.key, policies[step.key]);
    } else {
      this.served.delete(step.key);
      this.lives.set(step.key, this.lifeOf(step.key) + 1);
      this.pool.forget(step.key);
    }
  }

  acquire({ key, timeoutMs, holdMs, abortAfterMs, discard }: Acquire): void {
    const caller: Caller = {
      key,
      life: this.lifeOf(key),
      deadlineMs: this.time.now() + timeoutMs,
      settled: false,
    };
    const abort = new AbortController();
    if (abortAfterMs !== undefined) setTimeout(() => abort.abort(new Error('caller gone')), abortAfterMs);
    this.callers.push(caller);
    this.pool.acquire(key, { timeoutMs, signal: abort.signal }).then(
      (lease) => this.guard(() => this.granted(caller, lease, holdMs, discard)),
      (error) => this.guard(() => this.refused(caller, error, abort.signal)),
    );
  }

  granted(caller: Caller, lease: Lease, holdMs: number, discard: boolean): void {
    const vm = lease.vm as SimulatedVm;
    const earlier = this.callers.find(
      (other) => !other.settled && other.key === caller.key && other.life === caller.life,
    );
    assert.equal(earlier, caller, 'somebody who came earlier still waits');
    caller.settled = true;
    const leases = (this.leasesOf.get(vm) ?? 0) + 1;
    this.leasesOf.set(vm, leases);
    const { recycle, concurrency } = policies[caller.key];
    assert.equal(vm.snapshotId, caller.key);
    assert.ok(leases <= concurrency, `${leases} leases on one VM of ${caller.key}`);
    assert.ok(recycle === 'reuse' || !this.everLeased.has(vm), 'a fresh VM served twice');
    assert.ok((this.crashedAtMs.get(vm) ?? this.time.now()) >= this.time.now(), 'a dead VM was handed out');
    assert.ok(lease.epoch > this.lastEpoch, 'the epoch did not grow');
    this.lastEpoch = lease.epoch;
    this.everLeased.add(vm);
    setTimeout(() => {
      this.leasesOf.set(vm, this.leasesOf.get(vm)! - 1);
      if (discard) lease.discard();
      else lease.release();
      lease.release();
    }, holdMs);
  }

  refused(caller: Caller, error: unknown, signal: AbortSignal): void {
    caller.settled = true;
    if (signal.aborted && error === signal.reason) return;
    assert.ok(error instanceof ThawError, `not a typed error: ${error}`);
    const expected = ['no-capacity', 'overloaded', 'restore-failed', 'template-not-found', 'shutting-down'];
    assert.ok(expected.includes(error.code), error.code);
  }

  crash(index: number): void {
    const vm = [...this.factory.live][index];
    if (!vm || this.crashedAtMs.has(vm)) return;
    this.crashedAtMs.set(vm, this.time.now());
    vm.crash();
  }

  lifeOf(key: Key): number {
    return this.lives.get(key) ?? 0;
  }

  async advance(elapsedMs: number): Promise<void> {
    for (let ms = 0; ms < elapsedMs; ms += 1) {
      await this.time.advance(1);
      this.check();
    }
  }

  check(): void {
    if (this.broken) throw this.broken;
    const { live, restoring } = this.factory;
    assert.ok(live.size + restoring <= limits.vms, `${live.size} VMs and ${restoring} restores`);
    const memoryMb = [...live].reduce((sum, vm) => sum + vm.memoryMb, 0);
    assert.ok(memoryMb <= limits.memoryMb, `${memoryMb} MB in use`);
    assert.ok(this.capacity.used.memoryMb >= memoryMb, 'a VM is not charged');
    assert.ok(restoring <= maxConcurrentRestores, `${restoring} restores at once`);
    const waiting = this.callers.filter((caller) => !caller.settled);
    assert.ok(waiting.length <= maxWaiters, `${waiting.length} callers wait`);
    for (const caller of waiting)
      assert.ok(this.time.now() <= caller.deadlineMs + 2, `a caller of ${caller.key} hangs`);
  }

  async calmDown(): Promise<void> {
    await this.advance(200);
    await this.time.advance(quietMs, 20);
    await this.advance(100);
    for (const { snapshotId, vms, waiting, backoffMs } of this.pool.stats().shelves) {
      assert.equal(vms.warm, policies[snapshotId as Key].min, `the floor of ${snapshotId}`);
      assert.deepEqual([vms.restoring, vms.leased, vms.ending, waiting, backoffMs], [0, 0, 0, 0, 0]);
    }
    assert.deepEqual(new Set(this.pool.stats().shelves.map((shelf) => shelf.snapshotId)), this.served);
  }

  async drain(timeoutMs: number): Promise<void> {
    let drained = false;
    const draining = this.pool.drain(timeoutMs).then(() => {
      drained = true;
    });
    await this.advance(timeoutMs + 20);
    assert.ok(drained, 'drain outlasts its deadline');
    await draining;
    assert.deepEqual([this.factory.live.size, this.factory.restoring], [0, 0]);
    assert.deepEqual(this.capacity.used, { memoryMb: 0, vms: 0 });
    assert.equal(this.pool.stats().waiting, 0);
    assert.ok(
      this.callers.every((caller) => caller.settled),
      'a caller was never answered',
    );
  }

  /** A broken promise inside a callback must fail the run, not vanish. */
  guard(check: () => void): void {
    try {
      check();
    } catch (error) {
      this.broken ??= error;
    }
  }
}

test('holds its promises under any interleaving', async (t) => {
  const seed = Number(process.env.THAW_SEED ?? randomInt(2 ** 31));
  const numRuns = Number(process.env.THAW_RUNS ?? 300);
  t.diagnostic(`seed ${seed}, ${numRuns} runs`);
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 10, maxLength: 120, size: 'max' }),
      restorePlan,
      fc.boolean(),
      async (steps, plan, calm) => {
        using time = startVirtualTime();
        const simulation = new Simulation(time, plan);
        for (const each of keys) await simulation.run({ op: 'configure', key: each });
        for (const each of steps) await simulation.run(each);
        if (calm) await simulation.calmDown();
        await simulation.drain(20);
      },
    ),
    { seed, numRuns, endOnFailure: process.env.THAW_SHRINK === undefined },
  );
});
