// Owns reading values out of a query string, where everything is text and may come more than once.
// Invariant: what a route gets is of the kind it asked for, or the caller gets `bad-request` naming the parameter.
import { ThawError } from '../../shared/errors.ts';

export type Query = Record<string, string | string[] | undefined>;

/** @throws ThawError `bad-request` when it is given twice. */
export function textIn(query: Query, name: string): string | undefined {
  const given = query[name];
  if (Array.isArray(given)) throw new ThawError('bad-request', `${name}: expected one value, got several`);
  return given;
}

/** @throws ThawError `bad-request`. */
export function integerIn(query: Query, name: string, minimum: number, maximum: number): number | undefined {
  const given = textIn(query, name);
  if (given === undefined) return undefined;
  const value = /^[0-9]{1,15}$/.test(given) ? Number(given) : Number.NaN;
  if (value >= minimum && value <= maximum) return value;
  throw new ThawError('bad-request', `${name}: expected a whole number from ${minimum} to ${maximum}`);
}

/** @throws ThawError `bad-request`. */
export function oneOfIn<T extends string>(query: Query, name: string, choices: readonly T[]): T | undefined {
  const given = textIn(query, name);
  if (given === undefined || (choices as readonly string[]).includes(given)) return given as T | undefined;
  throw new ThawError('bad-request', `${name}: expected ${choices.join(' or ')}`);
}

/** Comma-joined, repeated, or both. */
export function listIn(query: Query, name: string): string[] {
  const given = [query[name] ?? []].flat();
  return given.flatMap((part) => part.split(',')).filter((part) => part !== '');
}
