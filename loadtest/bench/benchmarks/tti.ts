// Owns the time to interactive as a user of the real `e2b` client sees it: from Sandbox.create to the output of
// `node -v`, in three patterns of arrival. Invariant: each time ends with the right output; a sandbox that did not get
// there counts as an error, not as a time.
import { setTimeout as delay } from 'node:timers/promises';
import { Sandbox } from 'e2b';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { percentilesMs } from '../percentile.ts';
import { type RunningThaw, startThaw } from '../running-thaw.ts';

const staggerMs = 200;
const requestTimeoutMs = 120_000;

export const tti: Benchmark = {
  name: 'tti',
  summary:
    'create a sandbox until `node -v` has answered in it, by the e2b client: sequential, staggered, burst',
  n: { default: 20, description: 'sandboxes of each pattern' },
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
  bench.progress('one sandbox to warm up');
  await interactiveMs(thaw);
  const metrics: Metric[] = [];
  let errors = 0;
  for (const [name, pattern] of Object.entries(patterns)) {
    bench.progress(`${name}: ${bench.n} sandboxes`);
    const timesMs: number[] = [];
    await pattern(bench.n, async () => {
      try {
        timesMs.push(await interactiveMs(thaw));
      } catch (error) {
        errors++;
        bench.progress(`  ${name}: ${(error as Error).message}`);
      }
    });
    metrics.push(...percentilesMs(`${name}Ms`, timesMs, ['p50', 'p99']));
  }
  const asked = bench.n * Object.keys(patterns).length;
  metrics.push({ key: 'errors', value: errors, unit: 'count', n: asked, goal: { max: 0 } });
  return { n: asked - errors, ...thaw.facts, metrics };
}

/** @returns milliseconds; the sandbox's end is waited for but not counted. */
async function interactiveMs({ url, apiKey }: RunningThaw): Promise<number> {
  const startMs = performance.now();
  const sandbox = await Sandbox.create('base', { apiKey, apiUrl: url, sandboxUrl: url, requestTimeoutMs });
  try {
    const { stdout } = await sandbox.commands.run('node -v', { timeoutMs: requestTimeoutMs });
    const elapsedMs = performance.now() - startMs;
    if (!/^v\d+\.\d+\.\d+\n$/.test(stdout)) throw new Error(`node -v answered ${JSON.stringify(stdout)}`);
    return elapsedMs;
  } finally {
    await sandbox.kill();
  }
}
