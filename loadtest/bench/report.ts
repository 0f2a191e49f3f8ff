// Owns how an outcome is told: a table for people, one object for programs.
// Invariant: the object is `{ name, host, n, metrics }` of the fixed interfaces, every metric a finite number.
import { goalMet, type Metric, type Outcome } from './benchmark.ts';
import { describeHost, type HostDescription } from './host.ts';

export interface Report {
  name: string;
  host: HostDescription;
  n: number;
  metrics: Record<string, number>;
}

/** @throws Error on a metric that is no number: a benchmark without a figure has failed. */
export function reportOf(name: string, outcome: Outcome): Report {
  for (const { key, value } of outcome.metrics)
    if (!Number.isFinite(value)) throw new Error(`${name}: ${key} is ${value}`);
  const metrics = Object.fromEntries(outcome.metrics.map(({ key, value }) => [key, significant(value)]));
  return { name, host: describeHost(outcome), n: outcome.n, metrics };
}

export function textOf(name: string, outcome: Outcome): string {
  const host = describeHost(outcome);
  const rows = outcome.metrics.map(rowOf);
  const heading = ['metric', 'value', 'unit', 'n', 'goal', ''];
  const widths = heading.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => row[column]!.length)),
  );
  const lines = [heading, ...rows].map((row) =>
    row
      .map((cell, column) =>
        column === 1 || column === 3 ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!),
      )
      .join('  ')
      .trimEnd(),
  );
  const machine =
    `${host.cpu}, ${host.cores} cores, ${host.memoryGb} GB, Linux ${host.kernel}, Node ${host.node}, ` +
    `${host.hypervisor} (${host.accelerator})`;
  return [`${name}, n = ${outcome.n}`, machine, '', ...lines].join('\n');
}

function rowOf(metric: Metric): string[] {
  const { key, value, unit, n, goal } = metric;
  const bound = goal === undefined ? '' : 'max' in goal ? `≤ ${goal.max}` : `≥ ${goal.min}`;
  const met = goalMet(metric);
  return [key, shown(value), unit, String(n), bound, met === undefined ? '' : met ? 'met' : 'MISSED'];
}

const significant = (value: number): number => Number(value.toPrecision(6));

function shown(value: number): string {
  if (Number.isInteger(value) || Math.abs(value) >= 1_000) return Math.round(value).toString();
  return Number(value.toPrecision(3)).toString();
}
