// Owns the figure of a checkpoint: how long a running guest stands still for one, by what it changed, against the
// hypervisor's own full snapshot of the very same guest, and at two guest sizes; interleaved in one run.
// Invariant: what counts as dirty is what the capture found and stored, not what the guest was asked to write; a capture
// that failed is counted, not left out.
import { join } from 'node:path';
import type { Machine } from '../../../pool/hypervisor/hypervisor.ts';
import { QemuMachine } from '../../../pool/hypervisor/qemu/qemu-machine.ts';
import { Cleanup } from '../../../shared/cleanup.ts';
import { acceleratorOption, type BenchWorld, openBenchWorld } from '../bench-world.ts';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { openGuest } from '../captured-guest.ts';
import { migrateInto } from '../eager-restore.ts';
import { median, percentilesMs } from '../percentile.ts';

const smallMb = 256;
const largeMb = 1024;
/** What the guest writes into a file in its memory; a guest of another size only the second one. */
const writtenMb = [1, 8, 32, 64] as const;
const comparedMb = 8;
const kinds = [...writtenMb.map((written) => [smallMb, written] as const), [largeMb, comparedMb] as const];
/** Done while the guest stands still, by Thaw; the rest of the pause is the hypervisor's. */
const ownStages = ['scan', 'copy', 'disk'];
const stages = ['pause', 'state', ...ownStages, 'resume'];
const mebibyte = 1024 * 1024;

export const snapshot: Benchmark = {
  name: 'snapshot',
  summary:
    'pause of a running guest for a snapshot, by changed MB, against a full snapshot, at 256 MB and 1 GB',
  n: { default: 10, description: 'snapshots of each kind, each of a fresh clone' },
  options: acceleratorOption,
  run,
};

interface Captured {
  memoryMb: number;
  writtenMb: number;
  dirtyBytes: number;
  pauseMs: number;
  stagesMs: Map<string, number>;
}

interface Samples {
  captured: Captured[];
  /** Pause of the hypervisor's own way. */
  fullMs: number[];
  errors: string[];
}

async function run(bench: Bench): Promise<Outcome> {
  const world = await openBenchWorld(bench);
  const samples: Samples = { captured: [], fullMs: [], errors: [] };
  bench.progress('booting the templates at 256 MB and at 1 GB');
  const templates = new Map<number, string>();
  for (const memoryMb of [smallMb, largeMb])
    templates.set(memoryMb, await world.builder.ensureTemplate({ memoryMb, vcpus: 1 }));
  for (let turn = 1; turn <= bench.n; turn++) {
    bench.progress(`turn ${turn} of ${bench.n}`);
    // There and back: what the snapshot before leaves behind must not weigh on one kind only.
    for (const [memoryMb, written] of turn % 2 === 0 ? kinds : kinds.toReversed())
      await sample(world, templates, memoryMb, written, samples);
  }
  for (const error of new Set(samples.errors)) bench.progress(`a snapshot failed: ${error}`);
  return { n: bench.n, ...world.facts, metrics: metricsOf(samples) };
}

async function sample(
  world: BenchWorld,
  templates: Map<number, string>,
  memoryMb: number,
  written: number,
  samples: Samples,
): Promise<void> {
  await using cleanup = new Cleanup();
  const guest = await openGuest(world, templates.get(memoryMb)!, cleanup);
  await guest.shell.run(`head -c ${written}M /dev/urandom > /dev/shm/written; sync`);
  const stagesMs = new Map<string, number>();
  try {
    const record = await guest.capture((stage, elapsedMs) => stagesMs.set(stage, elapsedMs));
    cleanup.defer('snapshot', () => world.factory.library.remove(record.snapshotId));
    // The guest goes on, and with all it had.
    await guest.shell.run(`test $(stat -c %s /dev/shm/written) = ${written * mebibyte}`);
    const [dirtyBytes, pauseMs] = [record.dirtyPages! * 4096, record.pauseMs!.total!];
    samples.captured.push({ memoryMb, writtenMb: written, dirtyBytes, pauseMs, stagesMs });
  } catch (error) {
    samples.errors.push((error as Error).message);
  }
  if (memoryMb === smallMb && written === comparedMb)
    samples.fullMs.push(await fullSnapshot(world, guest.machine));
}

/** QEMU's ordinary way, on the guest that was captured before: stop, the stream of all memory to a file, go on. @returns ms. */
async function fullSnapshot(world: BenchWorld, machine: Machine): Promise<number> {
  if (!(machine instanceof QemuMachine)) throw new Error('only QEMU has a full snapshot to compare with');
  const startMs = performance.now();
  await machine.qmp.execute('stop');
  await migrateInto(machine, join(world.dataDir, 'full.stream'));
  await machine.qmp.execute('cont');
  return performance.now() - startMs;
}

function metricsOf({ captured, fullMs, errors }: Samples): Metric[] {
  const small = captured.filter(({ memoryMb }) => memoryMb === smallMb);
  const large = captured.filter(({ memoryMb }) => memoryMb === largeMb);
  const at = (written: number) => small.filter((each) => each.writtenMb === written);
  const pauses = (of: Captured[]) => of.map(({ pauseMs }) => pauseMs);
  const pauseMs = median(pauses(at(comparedMb)));
  const n = at(comparedMb).length;
  const attempts = captured.length + errors.length;
  return [
    ...writtenMb.flatMap((written) =>
      percentilesMs(`pauseMs.${written}`, pauses(at(written)), ['p50', 'p99']),
    ),
    ...writtenMb.map((written) => dirtyMetric(`dirtyMb.${written}`, at(written))),
    ...percentilesMs(`outsideVmmMs.${comparedMb}`, at(comparedMb).map(outsideVmmMs), ['p50', 'p99'], {
      p50: 40,
    }),
    {
      key: 'slopeMsPer100MiB',
      value: slopeOf(writtenMb.map(at)),
      unit: 'ms',
      n: small.length,
      goal: { max: 50 },
    },
    ...percentilesMs('fullMs', fullMs, ['p50']),
    { key: 'pauseVsFull', value: pauseMs / median(fullMs), unit: 'ratio', n, goal: { max: 0.15 } },
    ...percentilesMs(`pauseMs.${comparedMb}.${largeMb}mb`, pauses(large), ['p50', 'p99']),
    dirtyMetric(`dirtyMb.${comparedMb}.${largeMb}mb`, large),
    { key: 'largeVsSmall', value: median(pauses(large)) / pauseMs, unit: 'ratio', n, goal: { max: 1.3 } },
    ...stageMetrics(`stageMs.${comparedMb}`, at(comparedMb)),
    ...stageMetrics(`stageMs.${comparedMb}.${largeMb}mb`, large),
    { key: 'errors', value: errors.length, unit: 'count', n: attempts, goal: { max: 0 } },
  ];
}

const stageMetrics = (key: string, of: Captured[]): Metric[] =>
  stages.flatMap((stage) => percentilesMs(`${key}.${stage}`, stageOf(of, stage), ['p50']));

const stageOf = (of: Captured[], stage: string): number[] =>
  of.map(({ stagesMs }) => stagesMs.get(stage) ?? 0);

const outsideVmmMs = ({ stagesMs }: Captured): number =>
  ownStages.reduce((sum, stage) => sum + (stagesMs.get(stage) ?? 0), 0);

const dirtyMetric = (key: string, of: Captured[]): Metric => ({
  key,
  value: median(of.map(({ dirtyBytes }) => dirtyBytes)) / mebibyte,
  unit: 'MB',
  n: of.length,
});

/** Least squares through the medians of the part outside the VMM, which alone depends on what changed. */
function slopeOf(rows: Captured[][]): number {
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const x = rows.map((row) => median(row.map(({ dirtyBytes }) => dirtyBytes)) / mebibyte);
  const y = rows.map((row) => median(row.map(outsideVmmMs)));
  const [meanX, meanY] = [mean(x), mean(y)];
  const covariance = mean(x.map((value, index) => (value - meanX) * (y[index]! - meanY)));
  return (covariance / mean(x.map((value) => (value - meanX) ** 2))) * 100;
}
