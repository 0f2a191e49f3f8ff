// Owns small signed objects whose content a person may want to read: pins, the collector's announcement.
// Invariant: what is read was signed under this name and fits its schema.
import type { Static, TSchema } from 'typebox';
import { Value } from 'typebox/value';
import { ThawError } from '../../shared/errors.ts';
import type { BlobStore, RequestOptions } from '../store/blob-store.ts';
import { StoreError } from '../store/blob-store.ts';
import { type ClusterKey, openSigned, type SignedKind, sealSigned } from './signed-object.ts';

export interface JsonKind<S extends TSchema> extends SignedKind {
  schema: S;
}

export const sealJson = <S extends TSchema>(
  kind: JsonKind<S>,
  name: string,
  key: ClusterKey,
  value: Static<S>,
): Buffer => sealSigned(kind, name, key, Buffer.from(JSON.stringify(value)));

/** @throws ThawError `snapshot-damaged`. */
export function openJson<S extends TSchema>(
  kind: JsonKind<S>,
  name: string,
  key: ClusterKey,
  object: Buffer,
): Static<S> {
  const text = openSigned(kind, name, key, object).toString('utf8');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new ThawError('snapshot-damaged', `${name} is not JSON`, { cause: error });
  }
  if (!Value.Check(kind.schema, value))
    throw new ThawError('snapshot-damaged', `${name} is not what it should be`);
  return value;
}

/** @returns undefined when there is no such object. */
export async function getIfThere(
  store: BlobStore,
  name: string,
  options: RequestOptions,
): Promise<Buffer | undefined> {
  try {
    return await store.get(name, options);
  } catch (error) {
    if (error instanceof StoreError && error.failure === 'absent') return undefined;
    throw error;
  }
}
