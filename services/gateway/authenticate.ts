// Owns how a caller proves who it is: an API key in X-API-Key or Authorization: Bearer.
// Invariant: only a verified key opens; the key's text goes no further than this file.
import type { IncomingHttpHeaders } from 'node:http';
import { ThawError } from '../../shared/errors.ts';
import type { KeyStore } from './state/state-store.ts';

const bearer = /^bearer +(.+)$/i;

/** @returns the headers that carried a valid key, to be kept from the guest; undefined when there is none. */
export function credentialsOf(headers: IncomingHttpHeaders, keys: KeyStore): readonly string[] | undefined {
  const found: string[] = [];
  const direct = headers['x-api-key'];
  if (typeof direct === 'string' && keys.verify(direct)) found.push('x-api-key');
  const token = bearer.exec(headers.authorization ?? '')?.[1];
  if (token !== undefined && keys.verify(token)) found.push('authorization');
  return found.length === 0 ? undefined : found;
}

/** @throws ThawError `unauthenticated`. */
export function requireApiKey(headers: IncomingHttpHeaders, keys: KeyStore): readonly string[] {
  const found = credentialsOf(headers, keys);
  if (found === undefined)
    throw new ThawError(
      'unauthenticated',
      'this needs a valid API key in X-API-Key or Authorization: Bearer',
    );
  return found;
}
