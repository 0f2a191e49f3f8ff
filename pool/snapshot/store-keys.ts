// Owns the names of everything a snapshot store holds. Invariant: only ids and digests that passed their pattern get in.
import { ThawError } from '../../shared/errors.ts';
import { snapshotIdPattern } from '../../shared/ids.ts';

export const sha256Pattern = /^[0-9a-f]{64}$/;
const pinOwnerPattern = /^[a-z0-9][a-z0-9-]{0,127}$/;

export const segmentsPrefix = 'segments/';
export const manifestsPrefix = 'manifests/';
export const pinsPrefix = 'pins/';
export const lineageIndexKey = 'lineage/index';
export const sweepKey = 'gc/sweep';

function checked(pattern: RegExp, value: string): string {
  if (!pattern.test(value))
    throw new ThawError('bad-request', `not a valid name: ${JSON.stringify(value.slice(0, 64))}`);
  return value;
}

/** Spread over 256 directories: a directory store would otherwise keep all in one. */
export const segmentKey = (sha256: string): string =>
  `${segmentsPrefix}${checked(sha256Pattern, sha256).slice(0, 2)}/${sha256}`;
export const manifestKey = (snapshotId: string): string =>
  `${manifestsPrefix}${checked(snapshotIdPattern, snapshotId)}`;
/** Recorded after the snapshot was published, and replaced as more is learnt. */
export const workingSetKey = (snapshotId: string): string =>
  `working-sets/${checked(snapshotIdPattern, snapshotId)}`;
export const pinKey = (owner: string): string => `${pinsPrefix}${checked(pinOwnerPattern, owner)}`;

/** The last part of a key. */
export const nameIn = (key: string): string => key.slice(key.lastIndexOf('/') + 1);
