// Owns how invocations are counted. Invariant: label sets are bounded: tiers are fixed words, outcomes are `ok`,
// `function-error`, `client-gone` and the registered error codes.
import type { ErrorCode } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';
import type { Tier } from './node-client.ts';

export type Outcome = 'ok' | 'function-error' | 'client-gone' | ErrorCode;
export type Stage = 'queue' | 'place' | 'lease' | 'exec';

/** Making a labelled child costs more than observing with it. */
const durations = new Map<string, { observe(seconds: number): void }>();

export function observeInvocation(tier: Tier | 'none', outcome: Outcome, totalMs: number): void {
  const key = `${tier} ${outcome}`;
  let child = durations.get(key);
  if (child === undefined) {
    child = metrics.invocationDuration.labels(tier, outcome);
    durations.set(key, child);
  }
  child.observe(totalMs / 1_000);
}

const stages = {
  queue: metrics.invocationStage.labels('queue'),
  place: metrics.invocationStage.labels('place'),
  lease: metrics.invocationStage.labels('lease'),
  exec: metrics.invocationStage.labels('exec'),
};

export function observeStages(queueMs: number, placeMs: number, leaseMs: number, execMs: number): void {
  stages.queue.observe(queueMs / 1_000);
  stages.place.observe(placeMs / 1_000);
  stages.lease.observe(leaseMs / 1_000);
  stages.exec.observe(execMs / 1_000);
}
