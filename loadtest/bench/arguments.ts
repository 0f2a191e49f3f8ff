// Owns the benchmark program's command line: what may be given for a benchmark, and its help.
// Invariant: a name or option that does not exist is a usage error that says what there is; nothing is guessed.
import { parseArgs } from 'node:util';
import type { Benchmark, Option } from './benchmark.ts';

/** The caller wrote something that cannot be meant. */
export class UsageError extends Error {}

export interface Arguments {
  help: boolean;
  /** Where the JSON object goes; undefined: nowhere. */
  jsonPath: string | undefined;
  /** A missed goal is exit code 1. */
  check: boolean;
  values: Record<string, number | string>;
}

const common = {
  json: { type: 'string' },
  check: { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

export const optionsOf = (benchmark: Benchmark): Record<string, Option> => ({
  n: benchmark.n,
  ...benchmark.options,
});

/** @throws UsageError */
export function parseArguments(benchmark: Benchmark, args: string[]): Arguments {
  const own = optionsOf(benchmark);
  const declared = Object.keys(own).map((name) => [name, { type: 'string' as const }]);
  let parsed: Record<string, unknown>;
  try {
    parsed = parseArgs({ args, options: { ...Object.fromEntries(declared), ...common } }).values;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  const values = Object.fromEntries(
    Object.entries(own).map(([name, option]) => [name, optionValue(name, option, parsed[name] as string)]),
  );
  const { json, check, help } = parsed as { json?: string; check: boolean; help: boolean };
  return { help, check, jsonPath: json, values };
}

function optionValue(name: string, option: Option, given: string | undefined): number | string {
  if (given === undefined || typeof option.default === 'string') return given ?? option.default;
  if (!/^[1-9][0-9]{0,8}$/.test(given))
    throw new UsageError(`--${name}: expected a positive whole number, got ${given}`);
  return Number(given);
}

export function helpOf(benchmark: Benchmark): string {
  const own = Object.entries(optionsOf(benchmark)).map(
    ([name, { description, default: standard }]) =>
      [`--${name} VALUE`, `${description} (${standard === '' ? 'none' : standard})`] as const,
  );
  const rows = [
    ...own,
    ['--json FILE', 'write { name, host, n, metrics } there'] as const,
    ['--check', 'exit with 1 when a goal is missed'] as const,
  ];
  const width = Math.max(...rows.map(([flag]) => flag.length));
  const lines = rows.map(([flag, text]) => `  ${flag.padEnd(width)}  ${text}`);
  return [`bench ${benchmark.name}: ${benchmark.summary}`, '', ...lines].join('\n');
}
