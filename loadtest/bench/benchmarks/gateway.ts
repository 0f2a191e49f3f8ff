// Owns what the gateway, its node and its pool cost per request, with no emulated CPU in the way: Thaw over the
// `process` hypervisor against a bare proxy to the very same function process, in alternating rounds of one run.
// Invariant: load, Thaw, bare proxy and function are a process each; the ratio is of rounds that follow each other.
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Bench, Benchmark, Outcome } from '../benchmark.ts';
import { applyLoad, type LoadResult } from '../load.ts';
import { median } from '../percentile.ts';
import { startThaw } from '../running-thaw.ts';

const warmUpSeconds = 3;

/** Tells the port it listens on, so that the bare proxy can go to the same process. */
const whereFunction = `
const answer = JSON.stringify({ port: process.env.PORT });
export default { fetch: () => new Response(answer, { headers: { 'content-type': 'application/json' } }) };
`;

export const gateway: Benchmark = {
  name: 'gateway',
  summary: 'requests per second through the gateway against a bare fastify and undici proxy',
  n: { default: 6, description: 'rounds of each' },
  options: {
    seconds: { default: 5, description: 'length of a round' },
    connections: { default: 32, description: 'connections of the load' },
  },
  run,
};

async function run(bench: Bench): Promise<Outcome> {
  const connections = bench.number('connections');
  const thaw = await startThaw(bench, ['--hypervisor', 'process', '--base-warm', '0']);
  bench.progress('deploying the function');
  const one = { warm: { min: 1, max: 1 }, concurrency: Math.min(256, connections * 2) };
  await thaw.deploy({ name: 'where', runtime: 'node', ...one }, { 'index.mjs': whereFunction });
  const throughThaw = `${thaw.url}/fn/where/`;
  const { port } = (await (await fetch(throughThaw)).json()) as { port: string };
  const throughProxy = `http://127.0.0.1:${await startBareProxy(bench, port)}/`;
  const apply = (url: string, seconds: number) => applyLoad({ url, connections, seconds });
  bench.progress('warming up');
  for (const url of [throughProxy, throughThaw, throughProxy, throughThaw]) await apply(url, warmUpSeconds);
  const rounds: Round[] = [];
  for (let round = 1; round <= bench.n; round++) {
    const bare = await apply(throughProxy, bench.number('seconds'));
    const ours = await apply(throughThaw, bench.number('seconds'));
    bench.progress(`round ${round}: ${perSecond(ours)} against ${perSecond(bare)} requests per second`);
    rounds.push({ ours, bare });
  }
  return outcomeOf(rounds, thaw.facts);
}

interface Round {
  ours: LoadResult;
  bare: LoadResult;
}

const perSecond = (result: LoadResult) => Math.round(result.requestsPerSecond);

function outcomeOf(rounds: Round[], facts: Pick<Outcome, 'hypervisor' | 'accelerator'>): Outcome {
  const requests = (side: keyof Round) => rounds.reduce((sum, round) => sum + round[side].requests, 0);
  const errors = (side: keyof Round) => rounds.reduce((sum, round) => sum + round[side].errors, 0);
  const middle = (figure: (round: Round) => number) => median(rounds.map(figure));
  const n = requests('ours');
  const each = rounds.length;
  return {
    n,
    ...facts,
    metrics: [
      {
        key: 'requestsPerSecond',
        value: middle(({ ours }) => ours.requestsPerSecond),
        unit: 'per second',
        n: each,
      },
      {
        key: 'bareRequestsPerSecond',
        value: middle(({ bare }) => bare.requestsPerSecond),
        unit: 'per second',
        n: each,
      },
      {
        key: 'vsBareProxy',
        value: middle(({ ours, bare }) => ours.requestsPerSecond / bare.requestsPerSecond),
        unit: 'ratio',
        n: each,
        goal: { min: 0.5 },
      },
      { key: 'p99Ms', value: middle(({ ours }) => ours.p99Ms), unit: 'ms', n },
      { key: 'bareP99Ms', value: middle(({ bare }) => bare.p99Ms), unit: 'ms', n: requests('bare') },
      { key: 'errors', value: errors('ours'), unit: 'count', n, goal: { max: 0 } },
      { key: 'bareErrors', value: errors('bare'), unit: 'count', n: requests('bare') },
    ],
  };
}

/** @returns its port. */
async function startBareProxy(bench: Bench, targetPort: string): Promise<string> {
  const program = join(import.meta.dirname, '../bare-proxy.ts');
  const child: ChildProcess = spawn(process.execPath, [program, `http://127.0.0.1:${targetPort}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  bench.cleanup.defer('bare proxy', () => child.kill('SIGTERM'));
  const [line] = (await Promise.race([
    once(createInterface({ input: child.stdout! }), 'line'),
    once(child, 'exit').then(() => Promise.reject(new Error('the bare proxy ended at its start'))),
  ])) as [string];
  return line;
}
