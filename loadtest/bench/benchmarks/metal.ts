// Owns the figures of Thaw on Cloud Hypervisor against what that VMM does by itself, in one run, interleaved: restore
// without a copy of memory against its own, the pause of a snapshot of what changed against one of everything, a process
// that was ready against one that is started. Needs a binary and a KVM that works.
// Invariant: a restore's time runs from the asking to the agent's answer after its greeting.
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ControlClient } from '../../../pool/guest/control-client.ts';
import { handshake } from '../../../pool/guest/handshake.ts';
import { NamespaceSlots } from '../../../pool/host/network-slots.ts';
import { capturedFilesIn } from '../../../pool/host/paths.ts';
import { findCloudHypervisor } from '../../../pool/hypervisor/choose.ts';
import {
  CloudHypervisor,
  createCloudHypervisor,
} from '../../../pool/hypervisor/cloud-hypervisor/cloud-hypervisor.ts';
import type { Machine } from '../../../pool/hypervisor/hypervisor.ts';
import { Cleanup } from '../../../shared/cleanup.ts';
import { newVmId } from '../../../shared/ids.ts';
import { silentLog } from '../../../shared/log.ts';
import { acceleratorOption, type BenchWorld, openBenchWorld } from '../bench-world.ts';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { OwnWay, type SealedTemplate } from '../own-snapshots.ts';
import { median, percentilesMs } from '../percentile.ts';

const timeoutMs = 120_000;
/** By guest size: restore against the VMM's own, pause against the VMM's own. */
const goals: Record<number, { restore: number; pause: number }> = {
  256: { restore: 0.5, pause: 0.25 },
  1024: { restore: 0.2, pause: 0.08 },
};
const spareGoal = 0.75;
const pauseStages = new Set(['pause', 'state', 'scan', 'copy', 'disk', 'resume']);

export const metal: Benchmark = {
  name: 'metal',
  summary: 'restore and pause on Cloud Hypervisor, against what that VMM does by itself',
  n: { default: 5, description: 'samples of each kind at each guest size' },
  options: { ...acceleratorOption, 'large-mb': { default: 1024, description: 'the larger guest, MiB' } },
  run,
};

interface Samples {
  memoryMb: number;
  restoreMs: number[];
  /** Of the restores in `restoreMs`, by name, in order. */
  stagesMs: Map<string, number[]>;
  spawnedMs: number[];
  ownRestoreMs: number[];
  /** Of those, what the VMM itself took. */
  ownCallMs: number[];
  pauseMs: number[];
  ownPauseMs: number[];
  dirtyMb: number[];
}

async function run(bench: Bench): Promise<Outcome> {
  const world = await openBenchWorld(bench);
  const ready = world.hypervisor;
  if (!(ready instanceof CloudHypervisor)) throw new Error('this machine runs no Cloud Hypervisor');
  const binary = (await findCloudHypervisor(process.env.THAW_CLOUD_HYPERVISOR))!;
  const own = await OwnWay.open(world, binary);
  bench.cleanup.defer('slots of the yardstick', () => own.close());
  const starting = startsEachTime(world, binary);
  bench.cleanup.defer('driver without spares', () => starting.close());
  const all: Samples[] = [];
  for (const memoryMb of [256, bench.number('large-mb')])
    all.push(await measure(bench, world, { ready, starting, own }, memoryMb));
  return { n: bench.n, ...world.facts, metrics: all.flatMap(metricsOf) };
}

/** The same driver with nothing made ahead of need. */
function startsEachTime({ paths }: BenchWorld, binary: string): CloudHypervisor {
  const recordsDir = join(paths.dataDir, 'network-unready');
  const slots = new NamespaceSlots({ recordsDir, log: silentLog, ready: 0 });
  return createCloudHypervisor({ program: [binary], paths, log: silentLog, slots, spares: 0 });
}

interface Ways {
  ready: CloudHypervisor;
  starting: CloudHypervisor;
  own: OwnWay;
}

async function measure(bench: Bench, world: BenchWorld, ways: Ways, memoryMb: number): Promise<Samples> {
  bench.progress(`booting a template of ${memoryMb} MB`);
  const template = await sealTemplate(world, memoryMb);
  bench.progress('saving a clone with all of its memory');
  const { pausesMs: ownPauseMs, snapshot } = await ways.own.save(template, bench.n);
  const samples: Samples = {
    ...{ memoryMb, ownPauseMs },
    ...{
      restoreMs: [],
      stagesMs: new Map(),
      spawnedMs: [],
      ownRestoreMs: [],
      ownCallMs: [],
      pauseMs: [],
      dirtyMb: [],
    },
  };
  // Not counted: what is read from the disk for the first time.
  await restored(world, ways.ready, template);
  for (let turn = 1; turn <= bench.n; turn++) {
    bench.progress(`turn ${turn} at ${memoryMb} MB`);
    await quiet(ways);
    const pause = async (machine: Machine) => {
      await quiet(ways);
      const { pauseMs, dirtyBytes } = await pauseOf(world, machine);
      samples.pauseMs.push(pauseMs);
      samples.dirtyMb.push(dirtyBytes / 1e6);
    };
    const stages: [string, number][] = [];
    const onStage = (stage: string, elapsedMs: number) => void stages.push([stage, elapsedMs]);
    samples.restoreMs.push(await restored(world, ways.ready, template, { onStage, work: pause }));
    for (const [stage, elapsedMs] of stages)
      samples.stagesMs.set(stage, [...(samples.stagesMs.get(stage) ?? []), elapsedMs]);
    await quiet(ways);
    samples.spawnedMs.push(await restored(world, ways.starting, template));
    await quiet(ways);
    const own = await ways.own.restore(snapshot);
    samples.ownRestoreMs.push(own.elapsedMs);
    samples.ownCallMs.push(own.callMs);
  }
  return samples;
}

/** Processes and namespaces that are made, cleaned and removed in the background are not measured beside. */
async function quiet({ ready, starting, own }: Ways): Promise<void> {
  await Promise.all([ready.warm(), starting.warm(), own.rested()]);
}

async function sealTemplate(world: BenchWorld, memoryMb: number): Promise<SealedTemplate> {
  const { hypervisor, image, dataDir } = world;
  await using cleanup = new Cleanup();
  const shape = { memoryMb, vcpus: 1 };
  const dir = join(dataDir, `template-${memoryMb}`);
  await mkdir(dir);
  const files = capturedFilesIn(dir);
  const { vmId, runDir } = await runDirOf(world, cleanup);
  const machine = await hypervisor.boot({ vmId, shape, image, runDir, pagesPath: files.pagesPath });
  cleanup.defer('machine', () => machine.destroy());
  const control = new ControlClient(await machine.openControl());
  await handshake(control, vmId, '', timeoutMs);
  const nonce = Buffer.from(vmId.padEnd(16, '.')).toString('hex').slice(0, 32);
  await control.request({ op: 'seal', nonce }, timeoutMs);
  await machine.captureInPlace(files);
  return { files, nonce, shape };
}

interface RestoredOptions {
  onStage?: (stage: string, elapsedMs: number) => void;
  /** The clone lives while it runs. */
  work?: (machine: Machine) => Promise<void>;
}

/** @returns milliseconds. */
async function restored(
  world: BenchWorld,
  hypervisor: CloudHypervisor,
  { files: from, nonce, shape }: SealedTemplate,
  { onStage = () => {}, work = async () => {} }: RestoredOptions = {},
): Promise<number> {
  await using cleanup = new Cleanup();
  const { vmId, runDir } = await runDirOf(world, cleanup);
  const { image } = world;
  const startMs = performance.now();
  const request = { vmId, shape, image, runDir, from, memory: 'private' as const, onStage };
  const machine = await hypervisor.restore(request);
  cleanup.defer('machine', () => machine.destroy());
  const restoredMs = performance.now();
  const control = new ControlClient(await machine.openControl());
  const calledMs = performance.now();
  await handshake(control, vmId, nonce, timeoutMs);
  const greetedMs = performance.now();
  await control.request({ op: 'health' }, timeoutMs);
  const answeredMs = performance.now();
  machine.answered?.();
  onStage('call', calledMs - restoredMs);
  onStage('handshake', greetedMs - calledMs);
  onStage('answer', answeredMs - greetedMs);
  await work(machine);
  return answeredMs - startMs;
}

/** How long a clone stands still to be saved, and how much of its memory it had changed. */
async function pauseOf(
  { dataDir }: BenchWorld,
  machine: Machine,
): Promise<{ pauseMs: number; dirtyBytes: number }> {
  const pathOf = (name: string) => join(dataDir, `${machine.vmId}-${name}`);
  const target = { deltaPath: pathOf('delta'), devicesPath: pathOf('devices'), diskPath: pathOf('disk') };
  let pauseMs = 0;
  const onStage = (stage: string, elapsedMs: number) => {
    if (pauseStages.has(stage)) pauseMs += elapsedMs;
  };
  const { runs } = await machine.captureClone(target, { resume: true, onStage });
  await Promise.all(Object.values(target).map((path) => rm(path)));
  return { pauseMs, dirtyBytes: runs.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) };
}

async function runDirOf({ paths }: BenchWorld, cleanup: Cleanup): Promise<{ vmId: string; runDir: string }> {
  const vmId = newVmId();
  const runDir = paths.vmDir(vmId);
  await mkdir(runDir, { recursive: true });
  cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
  return { vmId, runDir };
}

function metricsOf(samples: Samples): Metric[] {
  const { memoryMb, restoreMs, stagesMs, spawnedMs, ownRestoreMs, ownCallMs, pauseMs, ownPauseMs, dirtyMb } =
    samples;
  const at = (key: string) => `${key}.${memoryMb}mb`;
  const n = restoreMs.length;
  const ratio = (key: string, value: number, max: number | undefined): Metric => ({
    ...{ key: at(key), value, unit: 'ratio', n },
    ...(max === undefined ? {} : { goal: { max } }),
  });
  const goal = goals[memoryMb];
  return [
    ...percentilesMs(at('restoreMs'), restoreMs, ['p50']),
    ...[...stagesMs].map(
      ([stage, times]): Metric => ({ key: at(`${stage}Ms`), value: median(times), unit: 'ms', n }),
    ),
    ...percentilesMs(at('eagerMs'), ownRestoreMs, ['p50']),
    ratio('restoreVsEager', median(restoreMs) / median(ownRestoreMs), goal?.restore),
    // Without what the guest and this program take, which is the same both ways.
    ratio('callVsEagerCall', median(stagesMs.get('resume')!) / median(ownCallMs), undefined),
    ...percentilesMs(at('spawnedMs'), spawnedMs, ['p50']),
    ratio('readyVsSpawned', median(restoreMs) / median(spawnedMs), spareGoal),
    ...percentilesMs(at('pauseMs'), pauseMs, ['p50']),
    ...percentilesMs(at('fullPauseMs'), ownPauseMs, ['p50']),
    ratio('pauseVsFull', median(pauseMs) / median(ownPauseMs), goal?.pause),
    { key: at('dirtyMb'), value: median(dirtyMb), unit: 'MB', n },
  ];
}
