// Owns what one more idle clone costs in memory: the VMM's proportional set size, the page file's pages that clones
// share counted once over all of them; and what a template and a sibling's snapshot take in a store.
// Invariant: a clone is idle when its figure has stopped changing, not when some time has passed.
import { readFile, stat } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { capturedFilesIn } from '../../../pool/host/paths.ts';
import type { Vm } from '../../../pool/vm.ts';
import { acceleratorOption, type BenchWorld, buildHello, openBenchWorld } from '../bench-world.ts';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { median } from '../percentile.ts';
import { storedSizes } from '../stored-size.ts';

const counts = [8, 32];
/** By hand a clone cost 39 MB, of which 33 were QEMU's own. */
const goalBytes: Record<string, number> = { qemu: 45_000_000, 'cloud-hypervisor': 30_000_000 };
const steadyFraction = 0.005;
const settleTimeoutMs = 30_000;

export const density: Benchmark = {
  name: 'density',
  summary: 'memory of an idle clone (PSS of its VMM), at 8 and at 32 clones; stored size of snapshots',
  n: { default: 32, description: 'clones at most; fewer than 32 leaves that row out' },
  options: {
    ...acceleratorOption,
    'memory-mb': { default: 256, description: 'guest memory' },
    stored: { default: 'yes', description: 'no: only memory' },
  },
  run,
};

async function run(bench: Bench): Promise<Outcome> {
  const world = await openBenchWorld(bench);
  bench.progress('building the function');
  const snapshotId = await buildHello(world, bench.number('memory-mb'));
  const vms: Vm[] = [];
  const metrics: Metric[] = [];
  for (const count of counts.filter((each) => each <= bench.n)) {
    bench.progress(`restoring up to ${count} clones`);
    while (vms.length < count) vms.push(await world.restore(snapshotId));
    metrics.push(...(await costAt(world, vms)));
  }
  if (metrics.length === 0) throw new Error(`--n: expected at least ${counts[0]}`);
  await Promise.all(vms.map((vm) => vm.destroy()));
  if (bench.text('stored') === 'yes') {
    bench.progress('storing a template and two siblings');
    metrics.push(...(await storedSizes(world, bench.number('memory-mb'))));
  }
  return { n: vms.length, ...world.facts, metrics };
}

async function costAt(world: BenchWorld, vms: Vm[]): Promise<Metric[]> {
  const samples = await settled(vms);
  const n = vms.length;
  const row = (key: string, value: number): Metric => ({ key: `${key}.${n}`, value, unit: 'MB', n });
  const pssBytes = median(samples.map(({ pssBytes }) => pssBytes));
  const max = goalBytes[world.hypervisor.name];
  const goal = n === counts[0] && max !== undefined ? { goal: { max } } : {};
  return [
    { key: `pssBytesPerClone.${n}`, value: pssBytes, unit: 'bytes', n, ...goal },
    row('anonymousMb', median(samples.map(({ anonymousBytes }) => anonymousBytes)) / 1e6),
    row('guestChangedMb', (await changedByGuests(world, vms)) / 1e6),
    row('sumOfPssMb', samples.reduce((sum, sample) => sum + sample.pssBytes, 0) / 1e6),
  ];
}

interface Memory {
  pssBytes: number;
  anonymousBytes: number;
}

/** Reads until two readings, a second apart, agree: what a restore left running has ended then. */
async function settled(vms: Vm[]): Promise<Memory[]> {
  const deadlineMs = performance.now() + settleTimeoutMs;
  let before = Number.POSITIVE_INFINITY;
  for (;;) {
    const samples = await Promise.all(vms.map(({ pid }) => memoryOf(pid)));
    const total = samples.reduce((sum, { pssBytes }) => sum + pssBytes, 0);
    if (Math.abs(total - before) / total < steadyFraction) return samples;
    if (performance.now() > deadlineMs) throw new Error('the clones did not come to rest');
    before = total;
    await delay(1_000);
  }
}

/** The part of the anonymous memory that is the guest's own writes; the rest is the VMM's heap and translated code. */
async function changedByGuests(world: BenchWorld, vms: Vm[]): Promise<number> {
  const { pagesPath } = capturedFilesIn(world.paths.snapshotDir(vms[0]!.snapshotId));
  const { ino } = await stat(pagesPath);
  const changed = vms.map(async ({ pid }) => {
    const mappings = (await readFile(`/proc/${pid}/smaps`, 'utf8')).split(/\n(?=[0-9a-f]+-[0-9a-f]+ )/);
    // By the file's number: a VMM may have it by another name.
    const ofPages = mappings.filter((mapping) => mapping.split(/\s+/, 5)[4] === String(ino));
    if (ofPages.length === 0) throw new Error(`process ${pid} does not map ${pagesPath}`);
    return ofPages.reduce(
      (sum, mapping) => sum + Number(/^Anonymous:\s+(\d+) kB/m.exec(mapping)?.[1]) * 1024,
      0,
    );
  });
  return median(await Promise.all(changed));
}

async function memoryOf(pid: number): Promise<Memory> {
  const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
  const bytes = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(rollup)?.[1]) * 1024;
  return { pssBytes: bytes('Pss'), anonymousBytes: bytes('Anonymous') };
}
