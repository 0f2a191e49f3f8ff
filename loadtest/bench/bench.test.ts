// The benchmark program around its measurements: usage, figures and the fixed JSON form.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { parseArguments, UsageError } from './arguments.ts';
import { type Benchmark, goalMet, type Outcome } from './benchmark.ts';
import { percentile, percentilesMs } from './percentile.ts';
import { benchmarks } from './registry.ts';
import { reportOf, textOf } from './report.ts';
import { ServerTiming } from './server-timing.ts';

const program = join(import.meta.dirname, 'main.ts');
const bench = (...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> =>
  new Promise((resolve) =>
    execFile(process.execPath, [program, ...args], (error, stdout, stderr) =>
      resolve({ code: Number(error?.code ?? 0), stdout, stderr }),
    ),
  );

const sample: Benchmark = {
  name: 'sample',
  summary: 'a sample',
  n: { default: 5, description: 'things' },
  options: { hypervisor: { default: 'auto', description: 'which' } },
  run: async () => Promise.reject(new Error('never run')),
};
const outcome: Outcome = {
  n: 3,
  hypervisor: 'qemu 7.2',
  accelerator: 'tcg',
  metrics: [
    { key: 'restoreMs.p50', value: 12.3456789, unit: 'ms', n: 3, goal: { max: 10 } },
    { key: 'vsBareProxy', value: 0.75, unit: 'ratio', n: 3, goal: { min: 0.5 } },
    { key: 'errors', value: 0, unit: 'count', n: 3 },
  ],
};

describe('benchmark program', () => {
  it('refuses an unknown name and lists what there is', async () => {
    for (const args of [['nope'], []]) {
      const { code, stdout, stderr } = await bench(...args);
      assert.equal(code, 2);
      assert.equal(stdout, '');
      for (const name of Object.keys(benchmarks)) assert.match(stderr, new RegExp(`^  ${name} `, 'm'));
    }
  });

  it('refuses an unknown option and a number that is none', async () => {
    assert.equal((await bench('restore', '--nope')).code, 2);
    assert.throws(() => parseArguments(sample, ['--n', 'many']), UsageError);
    assert.throws(() => parseArguments(sample, ['--n', '0']), UsageError);
  });

  it('shows the options of a benchmark', async () => {
    const { code, stdout } = await bench('restore', '--help');
    assert.equal(code, 0);
    assert.match(stdout, /--boots VALUE +boots to compare with \(3\)/);
  });

  it('registers every benchmark under its own name', async () => {
    for (const [name, load] of Object.entries(benchmarks)) assert.equal((await load()).name, name);
  });

  it('takes defaults and what is given', () => {
    const given = parseArguments(sample, ['--n', '7', '--json', 'out.json', '--check']);
    assert.deepEqual(given, {
      help: false,
      check: true,
      jsonPath: 'out.json',
      values: { n: 7, hypervisor: 'auto' },
    });
  });
});

describe('figures', () => {
  it('are measured values by nearest rank', () => {
    const samples = [40, 10, 30, 20];
    assert.equal(percentile(samples, 0.5), 20);
    assert.equal(percentile(samples, 0.99), 40);
    assert.equal(percentile([7], 0.999), 7);
    assert.throws(() => percentile([], 0.5), /no samples/);
  });

  it('carry their key, n and goal', () => {
    const [row] = percentilesMs('claimMs', [1, 2, 3], ['p50'], { p50: 1.5 });
    assert.deepEqual(row, { key: 'claimMs.p50', value: 2, unit: 'ms', n: 3, goal: { max: 1.5 } });
    assert.equal(goalMet(row!), false);
    assert.equal(percentilesMs('', [1], ['p99'])[0]!.key, 'p99');
  });

  it('are reported as the fixed object', () => {
    const { name, host, n, metrics, ...rest } = reportOf('restore', outcome);
    assert.deepEqual(rest, {});
    assert.deepEqual([name, n], ['restore', 3]);
    assert.deepEqual(metrics, { 'restoreMs.p50': 12.3457, vsBareProxy: 0.75, errors: 0 });
    assert.deepEqual([host.hypervisor, host.accelerator], ['qemu 7.2', 'tcg']);
    assert.ok(host.cpu.length > 0 && host.cores > 0 && host.kernel.length > 0);
  });

  it('that are no numbers fail the run', () => {
    const broken = { ...outcome, metrics: [{ ...outcome.metrics[0]!, value: Number.NaN }] };
    assert.throws(() => reportOf('restore', broken), /restoreMs.p50 is NaN/);
  });

  it('say in the table which goal was missed', () => {
    const lines = textOf('restore', outcome).split('\n');
    assert.match(lines.find((line) => line.startsWith('restoreMs.p50'))!, /≤ 10 +MISSED$/);
    assert.match(lines.find((line) => line.startsWith('vsBareProxy'))!, /≥ 0.5 +met$/);
  });

  it('come out of a Server-Timing header by name', () => {
    const timing = new ServerTiming('queue;dur=0, exec;dur=3.25, total;dur=3.5, tier;desc=warm');
    assert.equal(timing.ms('total') - timing.ms('exec'), 0.25);
    assert.equal(timing.tier, 'warm');
    assert.throws(() => timing.ms('place'), /no place/);
  });
});
