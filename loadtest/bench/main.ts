// Owns the benchmark program: one name, one run, a table on standard output and, when asked, a JSON file.
// Refuses to own any measurement (benchmarks/). Invariant: whatever a run started is undone before the process ends,
// also on a signal; exit code 0 measured, 1 failed (or a goal missed with --check), 2 usage.
import { writeFile } from 'node:fs/promises';
import { Cleanup } from '../../shared/cleanup.ts';
import { type Arguments, helpOf, parseArguments, UsageError } from './arguments.ts';
import { type Bench, type Benchmark, goalMet } from './benchmark.ts';
import { benchmarks } from './registry.ts';
import { reportOf, textOf } from './report.ts';

async function main(args: string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === '--help' || name === '-h') {
    console.log(await list());
    return 0;
  }
  const load = name !== undefined && Object.hasOwn(benchmarks, name) ? benchmarks[name] : undefined;
  if (load === undefined) {
    const fault = name === undefined ? 'which benchmark?' : `there is no benchmark ${name}`;
    throw new UsageError(`${fault}\n\n${await list()}`);
  }
  const benchmark = await load();
  const given = parseArguments(benchmark, rest);
  if (!given.help) return run(benchmark, given);
  console.log(helpOf(benchmark));
  return 0;
}

async function list(): Promise<string> {
  const rows = await Promise.all(
    Object.entries(benchmarks).map(async ([name, load]) => `  ${name.padEnd(12)}${(await load()).summary}`),
  );
  return ['usage: bench NAME [--json FILE] [options]; bench NAME --help shows the options', '', ...rows].join(
    '\n',
  );
}

async function run(benchmark: Benchmark, given: Arguments): Promise<number> {
  const cleanup = new Cleanup();
  endOnSignals(cleanup);
  try {
    const outcome = await benchmark.run(benchOf(given, cleanup));
    const report = reportOf(benchmark.name, outcome);
    console.log(textOf(benchmark.name, outcome));
    if (given.jsonPath !== undefined) await writeFile(given.jsonPath, `${JSON.stringify(report, null, 2)}\n`);
    return given.check && outcome.metrics.some((metric) => goalMet(metric) === false) ? 1 : 0;
  } finally {
    await undo(cleanup);
  }
}

function benchOf(given: Arguments, cleanup: Cleanup): Bench {
  const startMs = performance.now();
  return {
    n: given.values.n as number,
    number: (option) => Number(declared(given, option)),
    text: (option) => String(declared(given, option)),
    progress: (what) =>
      console.error(`${((performance.now() - startMs) / 1000).toFixed(1).padStart(6)} s  ${what}`),
    cleanup,
  };
}

function declared(given: Arguments, option: string): number | string {
  const value = given.values[option];
  if (value === undefined) throw new Error(`the benchmark declares no option ${option}`);
  return value;
}

async function undo(cleanup: Cleanup): Promise<void> {
  for (const { label, error } of await cleanup.run()) console.error(`not undone: ${label}:`, error);
}

function endOnSignals(cleanup: Cleanup): void {
  for (const [signal, exitCode] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)
    process.once(signal, () => void undo(cleanup).then(() => process.exit(exitCode)));
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  const usage = error instanceof UsageError;
  console.error(usage ? `bench: ${error.message}` : error);
  process.exitCode = usage ? 2 : 1;
}
