// Owns the cold burst: many callers ask for a clone of one snapshot at the same instant and none is warm.
// Goes through the pool, which bounds the restores under way, as a node does. Invariant: a caller's time runs from its
// asking to the function's answer on its own clone, all clones stay until the last one answered, and a caller that got
// none counts as an error, not as a time.
import { availableParallelism } from 'node:os';
import { request } from 'undici';
import { Capacity } from '../../../pool/capacity.ts';
import type { Lease } from '../../../pool/lease.ts';
import { Pool } from '../../../pool/pool.ts';
import { silentLog } from '../../../shared/log.ts';
import { acceleratorOption, type BenchWorld, buildHello, openBenchWorld } from '../bench-world.ts';
import type { Bench, Benchmark, Outcome } from '../benchmark.ts';
import { median, percentilesMs } from '../percentile.ts';

const memoryMb = 256;

export const burst: Benchmark = {
  name: 'burst',
  summary: 'clones of one snapshot asked for at once, none of them warm',
  n: { default: 32, description: 'clones asked for at once' },
  options: {
    ...acceleratorOption,
    rounds: { default: 3, description: 'bursts, each from an empty pool' },
    'timeout-s': { default: 60, description: 'how long a caller waits for its clone' },
    restores: { default: Math.max(2, availableParallelism()), description: 'restores under way at one time' },
  },
  run,
};

async function run(bench: Bench): Promise<Outcome> {
  const world = await openBenchWorld(bench);
  bench.progress('building the function');
  const snapshotId = await buildHello(world, memoryMb);
  await world.factory.load(snapshotId);
  const rounds: Round[] = [];
  for (let round = 1; round <= bench.number('rounds'); round++) {
    bench.progress(`burst ${round}`);
    const [restores, timeoutMs] = [bench.number('restores'), bench.number('timeout-s') * 1_000];
    rounds.push(await burstOnce(world, snapshotId, { count: bench.n, restores, timeoutMs }));
  }
  const timesMs = rounds.flatMap((round) => round.timesMs);
  const errors = rounds.reduce((sum, round) => sum + round.errors, 0);
  const n = timesMs.length;
  return {
    n,
    ...world.facts,
    metrics: [
      { key: 'errors', value: errors, unit: 'count', n: n + errors, goal: { max: 0 } },
      { key: 'perSecond', value: median(rounds.map(({ perSecond }) => perSecond)), unit: 'per second', n },
      ...percentilesMs('', timesMs, ['p50', 'p99']),
    ],
  };
}

interface Round {
  timesMs: number[];
  errors: number;
  perSecond: number;
}

interface BurstOptions {
  count: number;
  restores: number;
  timeoutMs: number;
}

async function burstOnce(
  world: BenchWorld,
  snapshotId: string,
  { count, restores: maxConcurrentRestores, timeoutMs }: BurstOptions,
): Promise<Round> {
  const capacity = new Capacity({ memoryMb: memoryMb * count, vms: count });
  const { factory } = world;
  const pool = new Pool({
    ...{ factory, capacity, log: silentLog, maxConcurrentRestores, maxWaiters: count },
    // All end at once.
    destroyTimeoutMs: timeoutMs,
  });
  try {
    pool.configure(snapshotId, { min: 0, max: count, recycle: 'fresh', concurrency: 1 });
    const startMs = performance.now();
    const leases: Lease[] = [];
    const asked = Array.from({ length: count }, () => askOnce(pool, snapshotId, leases, timeoutMs));
    const outcomes = await Promise.allSettled(asked);
    const elapsedMs = performance.now() - startMs;
    for (const lease of leases) lease.release();
    const timesMs = outcomes.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
    return { timesMs, errors: count - timesMs.length, perSecond: timesMs.length / (elapsedMs / 1_000) };
  } finally {
    await pool.drain(timeoutMs);
  }
}

/** @returns milliseconds until this caller's own clone had answered. */
async function askOnce(pool: Pool, snapshotId: string, leases: Lease[], timeoutMs: number): Promise<number> {
  const startMs = performance.now();
  const lease = await pool.acquire(snapshotId, { timeoutMs });
  leases.push(lease);
  const { host, port } = lease.vm.runner!;
  const response = await request(`http://${host}:${port}/`);
  await response.body.json();
  return performance.now() - startMs;
}
