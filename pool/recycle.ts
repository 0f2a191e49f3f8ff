// Owns what a snapshot's policy says about its VMs: how many, how shared, how reused. Pure.
// Invariant: a `fresh` VM serves one lease in its life.
import { ThawError } from '../shared/errors.ts';

export interface PoolPolicy {
  /** Floor: VMs kept ready before anyone asks. */
  min: number;
  /** Ceiling: VMs that can serve or soon will; those being destroyed do not count. */
  max: number;
  /** `reuse` returns a VM to the pool after its lease, `fresh` destroys it. */
  recycle: 'reuse' | 'fresh';
  /** Leases that one VM serves at a time; counts only with `reuse`. */
  concurrency: number;
}

/** @throws ThawError `bad-config` naming the key. */
export function checkPolicy(policy: PoolPolicy): void {
  const expect = (key: string, ok: boolean, expected: string) => {
    if (!ok) throw new ThawError('bad-config', `pool policy: ${key}: expected ${expected}`);
  };
  expect('min', Number.isInteger(policy.min) && policy.min >= 0, 'an integer of at least 0');
  expect('max', Number.isInteger(policy.max) && policy.max >= 1, 'an integer of at least 1');
  expect('min', policy.min <= policy.max, 'a number not above max');
  expect(
    'concurrency',
    Number.isInteger(policy.concurrency) && policy.concurrency >= 1,
    'an integer of at least 1',
  );
}

/** Leases one VM may serve at the same time. */
export const slotsOf = (policy: PoolPolicy): number => (policy.recycle === 'reuse' ? policy.concurrency : 1);

/** May a VM that has served be offered again? */
export const mayServeAgain = (policy: PoolPolicy): boolean => policy.recycle === 'reuse';

/**
 * VMs that count towards the floor. With `reuse` a leased VM does, for it comes back: a steady caller of a function
 * with a floor of one needs one VM. With `fresh` it does not, for the next caller needs another one.
 */
export const towardsFloor = (policy: PoolPolicy, warm: number, leased: number): number =>
  policy.recycle === 'reuse' ? warm + leased : warm;
