// Owns what the pool holds of one snapshot: its VMs, those who wait for one, and the numbers that follow from them.
// Refuses to own timers, other snapshots and the decision to restore or destroy (pool.ts).
// Invariant: `ready` holds exactly the VMs that can take a lease now, and is empty while anybody waits.
import type { ThawError } from '../shared/errors.ts';
import type { Lease, TakeBack } from './lease.ts';
import { LinkedList, ListMember } from './linked-list.ts';
import { mayServeAgain, type PoolPolicy, slotsOf, towardsFloor } from './recycle.ts';
import type { Vm } from './vm.ts';
import { type VmState, vmStates } from './vm-state.ts';
import type { Waiter } from './waiter.ts';

/** The first retry comes at once, for a single failure is most often the host's load; each later one waits twice as long. */
const firstBackoffMs = 250;
const maxBackoffMs = 30_000;

/** A VM from the start of its restore until its process is gone. */
export class PooledVm extends ListMember {
  readonly shelf: Shelf;
  readonly takeBack: TakeBack;
  readonly leases = new Set<Lease>();
  /** Set when the restore has succeeded: in every state but `restoring`. */
  vm!: Vm;
  state: VmState = 'restoring';
  hasServed = false;
  /** Found unfit: takes no lease any more and is destroyed after its last one. */
  retired = false;
  idleSinceMs = 0;
  /** The shelf's failures before this VM: it stands by them if the VM ends without ever having served. */
  failuresBefore = 0;

  constructor(shelf: Shelf, onTakeBack: (pooled: PooledVm, lease: Lease, keep: boolean) => void) {
    super();
    this.shelf = shelf;
    this.takeBack = (lease, keep) => onTakeBack(this, lease, keep);
  }

  get idle(): boolean {
    return this.state === 'warm';
  }

  /** Whether another lease is allowed it at all, now or when one of its leases has ended. */
  get mayServe(): boolean {
    return !this.retired && !this.shelf.forgotten && (!this.hasServed || mayServeAgain(this.shelf.policy));
  }

  get hasFreeSlot(): boolean {
    return this.leases.size < slotsOf(this.shelf.policy);
  }
}

export class Shelf {
  readonly snapshotId: string;
  readonly memoryMb: number;
  policy: PoolPolicy;
  forgotten = false;
  /** Least recently used first. */
  readonly ready = new LinkedList<PooledVm>();
  readonly waiters = new LinkedList<Waiter>();
  readonly vms = new Set<PooledVm>();
  readonly restores = new Set<AbortController>();
  readonly count = Object.fromEntries(vmStates.map((state) => [state, 0])) as Record<VmState, number>;
  failures = 0;
  retryAtMs = 0;
  lastError: ThawError | undefined;

  constructor(snapshotId: string, memoryMb: number, policy: PoolPolicy) {
    this.snapshotId = snapshotId;
    this.memoryMb = memoryMb;
    this.policy = policy;
  }

  /** How many restores those who wait still need, within the ceiling. */
  get restoresForWaiters(): number {
    const needed = Math.ceil(this.waiters.size / slotsOf(this.policy)) - this.count.restoring;
    return Math.min(needed, this.#belowCeiling);
  }

  /** How many restores the floor still needs, within the ceiling. */
  get restoresForFloor(): number {
    return Math.min(-this.surplus - this.count.restoring, this.#belowCeiling);
  }

  /** VMs above the floor; negative below it. */
  get surplus(): number {
    return towardsFloor(this.policy, this.count.warm, this.count.leased) - this.policy.min;
  }

  get aboveCeiling(): boolean {
    return this.#belowCeiling < 0;
  }

  get #belowCeiling(): number {
    return this.policy.max - this.count.restoring - this.count.warm - this.count.leased;
  }

  /** Idle VMs that the floor does not need, least recently used first. */
  *spare(): Generator<PooledVm> {
    let left = this.surplus;
    for (const pooled of this.ready) {
      if (left <= 0) return;
      if (!pooled.idle) continue;
      left -= 1;
      yield pooled;
    }
  }

  backsOff(nowMs: number): boolean {
    return this.retryAtMs > nowMs;
  }

  /** Nothing can come for those who wait before the next retry: no restore runs and no lease will give a VM back. */
  hopeless(nowMs: number): boolean {
    const comesBack = mayServeAgain(this.policy) && this.count.leased > 0;
    return this.backsOff(nowMs) && this.count.restoring === 0 && !comesBack;
  }

  /** `failuresBefore` lets a VM that never served count like a restore that failed. */
  failed(error: ThawError, nowMs: number, failuresBefore = 0): void {
    this.failures = Math.max(this.failures, failuresBefore) + 1;
    this.lastError = error;
    // What cannot succeed unchanged is not worth an early retry.
    const doublings = this.failures - (error.retryable ? 2 : 1);
    const backoffMs = doublings < 0 ? 0 : Math.min(maxBackoffMs, firstBackoffMs * 2 ** doublings);
    this.retryAtMs = nowMs + backoffMs;
  }

  succeeded(): void {
    this.failures = 0;
    this.retryAtMs = 0;
    this.lastError = undefined;
  }
}
