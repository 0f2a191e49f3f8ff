// Owns the time to interactive as users of the real `e2b` client and of both SDKs see it: from Sandbox.create to the output
// of `node -v`, in three patterns of arrival. Invariant: each time ends with the right output; a sandbox that did not get
// there counts as an error, not as a time. The keys of the e2b client have no prefix, those of the SDKs their language.
import { setTimeout as delay } from 'node:timers/promises';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { byE2b, byPython, byTypescript, type Interactive } from '../interactive.ts';
import { percentilesMs } from '../percentile.ts';
import { startThaw } from '../running-thaw.ts';

const staggerMs = 200;

export const tti: Benchmark = {
  name: 'tti',
  summary:
    'create a sandbox until `node -v` has answered in it, by the e2b client and both SDKs: sequential, staggered, burst',
  n: { default: 20, description: 'sandboxes of each pattern and client' },
  options: {
    hypervisor: { default: 'auto', description: 'as for thaw up' },
    warm: { default: 1, description: 'sandboxes that Thaw keeps warm' },
  },
  run,
};

type Pattern = (count: number, one: () => Promise<void>) => Promise<void>;

const patterns: Record<string, Pattern> = {
  async sequential(count, one) {
    for (let turn = 0; turn < count; turn++) await one();
  },
  async staggered(count, one) {
    const started: Promise<void>[] = [];
    for (let turn = 0; turn < count; turn++) {
      started.push(one());
      await delay(staggerMs);
    }
    await Promise.all(started);
  },
  async burst(count, one) {
    await Promise.all(Array.from({ length: count }, one));
  },
};

async function run(bench: Bench): Promise<Outcome> {
  const args = ['--hypervisor', bench.text('hypervisor'), '--base-warm', String(bench.number('warm'))];
  const thaw = await startThaw(bench, args);
  const clients: [prefix: string, interactive: Interactive][] = [
    ['', byE2b(thaw)],
    ['typescript.', byTypescript(thaw)],
    ['python.', byPython(bench, thaw)],
  ];
  const metrics: Metric[] = [];
  let [asked, errors] = [0, 0];
  for (const [prefix, interactive] of clients) {
    bench.progress(`${prefix}warm-up: one sandbox`);
    await interactive();
    for (const name of Object.keys(patterns)) {
      bench.progress(`${prefix}${name}: ${bench.n} sandboxes`);
      const timesMs = await timesOf(bench, name, interactive);
      metrics.push(...percentilesMs(`${prefix}${name}Ms`, timesMs, ['p50', 'p99']));
      asked += bench.n;
      errors += bench.n - timesMs.length;
    }
  }
  metrics.push({ key: 'errors', value: errors, unit: 'count', n: asked, goal: { max: 0 } });
  return { n: asked - errors, ...thaw.facts, metrics };
}

/** @returns fewer than were asked for when some failed, which is said. */
async function timesOf(bench: Bench, name: string, interactive: Interactive): Promise<number[]> {
  const timesMs: number[] = [];
  await patterns[name]!(bench.n, async () => {
    try {
      timesMs.push(await interactive());
    } catch (error) {
      bench.progress(`  ${name}: ${(error as Error).message}`);
    }
  });
  return timesMs;
}
