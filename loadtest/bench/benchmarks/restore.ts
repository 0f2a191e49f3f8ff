// Owns the figure that Thaw exists for: how long from asking for a clone to its application's answer, against booting
// the same application and against the hypervisor's own restore that copies all memory; all in one run, interleaved.
// Invariant: each time runs from the asking, the spawn of the VMM included, to an HTTP answer of the function itself.
import { Agent } from 'undici';
import { Cleanup } from '../../../shared/cleanup.ts';
import { acceleratorOption, type BenchWorld, buildHello, openBenchWorld } from '../bench-world.ts';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { bootHello } from '../boot-hello.ts';
import { restoreEagerly, saveEagerly } from '../eager-restore.ts';
import { median, percentilesMs } from '../percentile.ts';

const smallMb = 256;
const largeMb = 1024;
/** A full-copy restore to every so many of Thaw's: it is the yardstick, and slow. */
const eagerEvery = 4;
const restoreTimeoutMs = 60_000;

export const restore: Benchmark = {
  name: 'restore',
  summary: 'restore to answer, against boot and against a full-copy restore, at 256 MB and 1 GB',
  n: { default: 40, description: 'restores of each size' },
  options: { ...acceleratorOption, boots: { default: 3, description: 'boots to compare with' } },
  run,
};

interface Samples {
  bootMs: number[];
  eagerMs: number[];
  /** By guest size. */
  small: Restored[];
  large: Restored[];
}

interface Restored {
  restoreMs: number;
  firstRequestMs: number;
  secondRequestMs: number;
  stagesMs: Map<string, number>;
}

async function run(bench: Bench): Promise<Outcome> {
  const world = await openBenchWorld(bench);
  const samples: Samples = { bootMs: [], eagerMs: [], small: [], large: [] };
  bench.progress('building the function at 256 MB and at 1 GB');
  const small = await buildHello(world, smallMb);
  const large = await buildHello(world, largeMb);
  bench.progress('saving the 256 MB clone with all of its memory');
  const eager = await saveEagerly(world, small);
  for (let boot = 1; boot <= bench.number('boots'); boot++) {
    bench.progress(`boot ${boot}`);
    samples.bootMs.push(await bootHello(world, smallMb));
  }
  bench.progress(`restoring ${bench.n} times at each size`);
  for (let turn = 0; turn < bench.n; turn++) {
    samples.small.push(await restoreOnce(world, small));
    samples.large.push(await restoreOnce(world, large));
    if (turn % eagerEvery === 0) samples.eagerMs.push(await restoreEagerly(world, eager));
  }
  return { n: bench.n, ...world.facts, metrics: metricsOf(samples) };
}

async function restoreOnce(world: BenchWorld, snapshotId: string): Promise<Restored> {
  await using cleanup = new Cleanup();
  const stages: { stage: string; elapsedMs: number }[] = [];
  const startMs = performance.now();
  // The factory's last step is the snapshot's prime path: the function itself has answered when it returns.
  const vm = await world.factory.restore(snapshotId, AbortSignal.timeout(restoreTimeoutMs), stages);
  const restoreMs = performance.now() - startMs;
  cleanup.defer('clone', () => vm.destroy());
  const agent = new Agent({ connections: 1 });
  cleanup.defer('connection', () => agent.destroy());
  const origin = `http://${vm.runner!.host}:${vm.runner!.port}`;
  const requestMs = async () => {
    const sentMs = performance.now();
    const response = await agent.request({ origin, path: '/', method: 'GET' });
    await response.body.json();
    return performance.now() - sentMs;
  };
  return {
    restoreMs,
    firstRequestMs: await requestMs(),
    secondRequestMs: await requestMs(),
    stagesMs: new Map(stages.map(({ stage, elapsedMs }) => [stage, elapsedMs])),
  };
}

function metricsOf({ bootMs, eagerMs, small, large }: Samples): Metric[] {
  const smallMs = small.map((each) => each.restoreMs);
  const largeMs = large.map((each) => each.restoreMs);
  const restoreMs = median(smallMs);
  const first = median(small.map((each) => each.firstRequestMs));
  const second = median(small.map((each) => each.secondRequestMs));
  const n = small.length;
  const ratio = (key: string, value: number, max?: number): Metric => ({
    key,
    value,
    unit: 'ratio',
    n,
    ...(max === undefined ? {} : { goal: { max } }),
  });
  return [
    ...percentilesMs('bootMs', bootMs, ['p50']),
    ...percentilesMs('restoreMs', smallMs, ['p50', 'p99']),
    ...percentilesMs(`restoreMs.${largeMb}mb`, largeMs, ['p50', 'p99']),
    ratio('restoreVsBoot', restoreMs / median(bootMs), 0.06),
    ratio('restoreLargeVsSmall', median(largeMs) / restoreMs, 1.3),
    ...percentilesMs('eagerMs', eagerMs, ['p50']),
    ratio('restoreVsEager', restoreMs / median(eagerMs)),
    ...percentilesMs(
      'firstRequestMs',
      small.map((each) => each.firstRequestMs),
      ['p50', 'p99'],
    ),
    ratio('firstVsSecondRequest', first / second, 2),
    ...stageMetrics(small),
  ];
}

function stageMetrics(restored: Restored[]): Metric[] {
  const stages = [...restored[0]!.stagesMs.keys()].filter((stage) => stage !== 'total');
  return stages.flatMap((stage) =>
    percentilesMs(
      `stageMs.${stage}`,
      restored.map(({ stagesMs }) => stagesMs.get(stage) ?? 0),
      ['p50'],
    ),
  );
}
