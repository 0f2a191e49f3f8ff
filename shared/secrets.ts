// Owns comparing secrets. Invariant: how long it takes tells nothing about how much of a guess was right.
import { createHash, timingSafeEqual } from 'node:crypto';

/** Equal digests stand for equal values: their fixed length gives nothing away. */
export function equalSecrets(given: unknown, expected: string | undefined): boolean {
  if (typeof given !== 'string' || expected === undefined || expected === '') return false;
  const digest = (value: string) => createHash('sha256').update(value).digest();
  return timingSafeEqual(digest(given), digest(expected));
}
