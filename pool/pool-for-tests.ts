// Owns the world of the pool's tests: a pool over simulated VMs in virtual time.
// Refuses to own what a test asks of it. Invariant: every test ends with a drain that must leave nothing.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ThawError } from '../shared/errors.ts';
import { silentLog } from '../shared/log.ts';
import { Capacity } from './capacity.ts';
import type { Lease } from './lease.ts';
import { Pool, type PoolOptions, type PoolPolicy } from './pool.ts';
import {
  restoreError,
  type SimulatedVm,
  SimulatedVmFactory,
  type SimulatedVmFactoryOptions,
} from './simulated-vm-factory.ts';
import { startVirtualTime, type VirtualTime } from './virtual-time.ts';

export const policy = (change: Partial<PoolPolicy> = {}): PoolPolicy => ({
  min: 0,
  max: 8,
  recycle: 'reuse',
  concurrency: 1,
  ...change,
});

export interface World {
  time: VirtualTime;
  pool: Pool;
  factory: SimulatedVmFactory;
  capacity: Capacity;
  /** The settled result, or 'pending'. */
  look<T>(promise: Promise<T>): Promise<T | 'pending' | ThawError>;
  shelf(snapshotId: string): ReturnType<Pool['stats']>['shelves'][number];
}

/** A test whose timers are virtual; it ends with a drain that must leave nothing. */
export function poolTest(
  name: string,
  given: {
    pool?: Partial<PoolOptions>;
    factory?: SimulatedVmFactoryOptions;
    memoryMb?: number;
    vms?: number;
  },
  body: (world: World) => Promise<void>,
): void {
  test(name, async () => {
    using time = startVirtualTime();
    const factory = new SimulatedVmFactory(given.factory);
    const capacity = new Capacity({ memoryMb: given.memoryMb ?? 16_384, vms: given.vms ?? 64 });
    const pool = new Pool({
      factory,
      capacity,
      log: silentLog,
      maxConcurrentRestores: 4,
      maxWaiters: 16,
      now: time.now,
      ...given.pool,
    });
    const look: World['look'] = async (promise) => {
      let result: Awaited<ReturnType<World['look']>> = 'pending';
      promise.then(
        (value) => (result = value as never),
        (error) => (result = error),
      );
      await time.advance(0);
      return result as never;
    };
    const shelf = (snapshotId: string) =>
      pool.stats().shelves.find((each) => each.snapshotId === snapshotId)!;
    await body({ time, pool, factory, capacity, look, shelf });
    const drained = pool.drain(100);
    await time.advance(5_000);
    await drained;
    assert.equal(factory.live.size, 0);
    assert.deepEqual(capacity.used, { memoryMb: 0, vms: 0 });
  });
}

export const isLease = (value: unknown): Lease => {
  assert.ok(value instanceof Object && 'epoch' in value, `expected a lease, got ${value}`);
  return value as Lease;
};
export const vmOf = (lease: Lease): SimulatedVm => lease.vm as SimulatedVm;

/** Fails the restores whose number (from 0) `fails` picks. */
export function failing(fails: (n: number) => boolean): SimulatedVmFactoryOptions['plan'] {
  let n = 0;
  return () => {
    const failed = fails(n);
    n += 1;
    return { restoreMs: 10, ...(failed ? { error: restoreError() } : {}) };
  };
}

/** The lease of a request that needs a restore. */
export async function restored(time: VirtualTime, asked: Promise<Lease>): Promise<Lease> {
  await time.advance(20);
  return asked;
}

export async function assertLater(
  time: VirtualTime,
  promise: Promise<unknown>,
  elapsedMs: number,
  code: string,
): Promise<void> {
  let outcome: unknown = 'pending';
  promise.then(
    () => (outcome = 'fulfilled'),
    (error) => (outcome = error.code ?? error),
  );
  await time.advance(elapsedMs);
  assert.equal(outcome, code);
}
