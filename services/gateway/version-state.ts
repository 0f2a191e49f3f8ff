// Owns the states of a function version as a table of single hops.
// Invariant: a version is served only while `ready`; a failed one never becomes ready under the same number.

export type VersionState = 'building' | 'ready' | 'failed' | 'retired';

export const versionHops: Record<VersionState, readonly VersionState[]> = {
  building: ['ready', 'failed'],
  ready: ['retired'],
  failed: ['retired'],
  retired: [],
};

export const mayBecome = (from: VersionState, to: VersionState): boolean => versionHops[from].includes(to);

/** @returns a copy in the new state. @throws Error when the table has no such hop: a bug, not an input. */
export function advance<T extends { state: VersionState }>(record: T, to: VersionState): T {
  if (!mayBecome(record.state, to)) throw new Error(`a ${record.state} version cannot become ${to}`);
  return { ...record, state: to };
}
