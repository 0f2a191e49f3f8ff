// Owns turning samples into figures. Invariant: a percentile is a value that was measured (nearest rank), never a
// guess between two, and always goes with its n.
import type { Metric } from './benchmark.ts';

/** @param rank between 0 and 1. @throws Error without samples: there is no figure to report then. */
export function percentile(samples: readonly number[], rank: number): number {
  if (samples.length === 0) throw new Error('no samples');
  const sorted = samples.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(rank * sorted.length) - 1)]!;
}

export const median = (samples: readonly number[]): number => percentile(samples, 0.5);

const ranks = { p50: 0.5, p99: 0.99, p999: 0.999 } as const;
export type Rank = keyof typeof ranks;

/** Rows `KEY.p50`, … of one set of samples in milliseconds. */
export function percentilesMs(
  key: string,
  samplesMs: readonly number[],
  wanted: readonly Rank[],
  goals: Partial<Record<Rank, number>> = {},
): Metric[] {
  return wanted.map((rank) => {
    const goal = goals[rank];
    return {
      key: key === '' ? rank : `${key}.${rank}`,
      value: percentile(samplesMs, ranks[rank]),
      unit: 'ms',
      n: samplesMs.length,
      ...(goal === undefined ? {} : { goal: { max: goal } }),
    };
  });
}
