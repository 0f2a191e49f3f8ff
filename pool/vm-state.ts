// Owns the life of a VM in the pool as a table of single hops. Refuses to own what causes or follows a hop.
// Invariant: every change of a VM's state is one of these hops; `gone` and `lost` are final.

export const vmStates = ['restoring', 'warm', 'leased', 'ending', 'gone', 'lost'] as const;
export type VmState = (typeof vmStates)[number];

const hops: Record<VmState, readonly VmState[]> = {
  /** The factory works on it; its memory is already charged. Ends as a VM, or as nothing. */
  restoring: ['warm', 'gone'],
  /** Serves nobody. */
  warm: ['leased', 'ending'],
  /** Serves one lease, or several where its snapshot allows. */
  leased: ['warm', 'ending'],
  /** Ended by itself or by the pool; its process may still hold memory. */
  ending: ['gone', 'lost'],
  /** Its process is gone and its memory free. */
  gone: [],
  /** It could not be destroyed: its memory stays charged until the next start reclaims it. */
  lost: [],
};

export const canHop = (from: VmState, to: VmState): boolean => hops[from].includes(to);

/** @throws Error on a hop that is not in the table: a defect of the pool, never of its callers. */
export function assertHop(from: VmState, to: VmState): void {
  if (!canHop(from, to)) throw new Error(`a VM cannot go from ${from} to ${to}`);
}
