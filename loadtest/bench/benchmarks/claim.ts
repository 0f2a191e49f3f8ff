// Owns what a warm request costs: through the gateway into a VM that is ready, and how much of that is Thaw's own.
// Thaw's share is its own Server-Timing, total less exec; the direct requests go to the same guest through the port
// that its VMM forwards. Invariant: both ways alternate request by request in one run, one at a time, on kept
// connections; a request that was not answered warm counts as an error.
import { Agent, type Dispatcher } from 'undici';
import { Cleanup } from '../../../shared/cleanup.ts';
import { helloFunction } from '../bench-world.ts';
import type { Bench, Benchmark, Outcome } from '../benchmark.ts';
import { findGuest } from '../listening-ports.ts';
import { median, percentilesMs } from '../percentile.ts';
import { type RunningThaw, startThaw } from '../running-thaw.ts';
import { ServerTiming } from '../server-timing.ts';

const warmUps = 50;

export const claim: Benchmark = {
  name: 'claim',
  summary: 'a warm request through the gateway, and how much of it is Thaw’s own',
  n: { default: 2_000, description: 'requests through the gateway, and as many straight to the guest' },
  options: { hypervisor: { default: 'auto', description: 'as for thaw up' } },
  run,
};

interface Samples {
  claimMs: number[];
  platformMs: number[];
  directMs: number[];
  errors: number;
}

async function run(bench: Bench): Promise<Outcome> {
  const thaw = await startThaw(bench, ['--hypervisor', bench.text('hypervisor'), '--base-warm', '0']);
  bench.progress('deploying the function');
  const manifest = { name: 'hello', runtime: 'node', warm: { min: 1, max: 1 } } as const;
  await thaw.deploy(manifest, { 'index.mjs': helloFunction });
  await using cleanup = new Cleanup();
  const agent = new Agent({ connections: 1, keepAliveTimeout: 60_000 });
  cleanup.defer('connections', () => agent.destroy());
  const through = () => get(agent, thaw.url, '/fn/hello/');
  await through();
  const origin = await guestOrigin(agent, thaw);
  const direct = () => get(agent, origin, '/');
  const samples: Samples = { claimMs: [], platformMs: [], directMs: [], errors: 0 };
  bench.progress(`${warmUps} requests of each kind to warm up`);
  for (let turn = 0; turn < warmUps; turn++) {
    await through();
    await direct();
  }
  bench.progress(`${bench.n} requests of each kind`);
  for (let turn = 0; turn < bench.n; turn++) await sample(samples, through, direct);
  return outcomeOf(samples, thaw.facts);
}

async function sample(
  samples: Samples,
  through: () => Promise<Answer>,
  direct: () => Promise<Answer>,
): Promise<void> {
  const answer = await through();
  const timing = new ServerTiming(answer.headers['server-timing']);
  if (answer.status === 200 && timing.tier === 'warm') {
    samples.claimMs.push(answer.elapsedMs);
    samples.platformMs.push(timing.ms('total') - timing.ms('exec'));
  } else samples.errors++;
  samples.directMs.push((await direct()).elapsedMs);
}

interface Answer {
  status: number;
  headers: Dispatcher.ResponseData['headers'];
  text: string;
  elapsedMs: number;
}

async function get(agent: Agent, origin: string, path: string): Promise<Answer> {
  const startMs = performance.now();
  const response = await agent.request({ origin, path, method: 'GET' });
  const text = await response.body.text();
  const elapsedMs = performance.now() - startMs;
  return { status: response.statusCode, headers: response.headers, text, elapsedMs };
}

/** The one VM's forwarded port behind which the function answers: its agent's answers differ. */
const guestOrigin = (agent: Agent, thaw: RunningThaw): Promise<string> =>
  findGuest(thaw.dataDir, async (origin) => (await get(agent, origin, '/')).text.includes('"hello"'));

function outcomeOf(samples: Samples, facts: Pick<Outcome, 'hypervisor' | 'accelerator'>): Outcome {
  const { claimMs, platformMs, directMs, errors } = samples;
  const n = claimMs.length;
  return {
    n,
    ...facts,
    metrics: [
      ...percentilesMs('claimMs', claimMs, ['p50', 'p99', 'p999']),
      ...percentilesMs('platformMs', platformMs, ['p50', 'p99', 'p999'], { p50: 1.5, p99: 8 }),
      ...percentilesMs('directMs', directMs, ['p50', 'p99']),
      { key: 'overheadVsDirect', value: median(claimMs) / median(directMs), unit: 'ratio', n },
      { key: 'errors', value: errors, unit: 'count', n: n + errors, goal: { max: 0 } },
    ],
  };
}
