// Owns the words between a benchmark and the program that runs it. To add one: a file in benchmarks/ that exports a
// `Benchmark`, and its line in registry.ts; arguments, table, JSON, percentiles and clean-up are there already.
// Invariant: a benchmark reports what it measured and how often; whether that is good is said by the goal beside it.
import type { Cleanup } from '../../shared/cleanup.ts';

export interface Option {
  default: number | string;
  description: string;
}

export interface Benchmark {
  name: string;
  /** One line for the list. */
  summary: string;
  /** What `--n` counts. */
  n: Option & { default: number };
  /** Further options by name, given as --NAME VALUE; the default decides whether it is a number. */
  options?: Record<string, Option>;
  run(bench: Bench): Promise<Outcome>;
}

/** What one run is given. */
export interface Bench {
  n: number;
  /** @throws Error when the benchmark declares no such option. */
  number(option: string): number;
  text(option: string): string;
  /** Says what is under way, with the time since the start. */
  progress(what: string): void;
  /** Undone when the run has ended, however it ended. */
  cleanup: Cleanup;
}

export interface Outcome {
  /** Samples behind the main figure. */
  n: number;
  hypervisor: string;
  /** `tcg`, `kvm` or `none`. */
  accelerator: string;
  /** In the order of the table. */
  metrics: Metric[];
}

export type Unit = 'ms' | 'ratio' | 'per second' | 'count' | 'bytes' | 'MB' | 'fraction';

export interface Metric {
  /** As in the fixed interfaces: `restoreMs.p50`. */
  key: string;
  value: number;
  unit: Unit;
  /** Samples behind this figure. */
  n: number;
  goal?: { max: number } | { min: number };
}

export const goalMet = ({ goal, value }: Metric): boolean | undefined => {
  if (goal === undefined) return undefined;
  return 'max' in goal ? value <= goal.max : value >= goal.min;
};
