// Owns one host's VMs by snapshot: keeps floors warm, hands out leases, makes and destroys VMs within capacity.
// Refuses to own how a VM is made (VmFactory) and what a lease is used for.
// Invariant: a lease is granted from what is ready, at once; everything else happens in `#reconcile`, which brings
// the pool to what its policies, waiters and capacity ask for and may run at any time, any number of times.
import type { ControlEvent } from '../shared/agent-protocol.ts';
import { ThawError } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { metrics, publishAtScrape } from '../shared/metrics.ts';
import type { Capacity } from './capacity.ts';
import { Lease } from './lease.ts';
import { checkPolicy, type PoolPolicy } from './recycle.ts';
import { PooledVm, Shelf } from './shelf.ts';
import type { Tier, Vm, VmFactory } from './vm.ts';
import { assertHop, type VmState, vmStates } from './vm-state.ts';
import { type AcquireOptions, Waiter } from './waiter.ts';

export type { AcquireOptions, PoolPolicy };

export interface PoolOptions {
  factory: VmFactory;
  capacity: Capacity;
  log: Log;
  /** Restores at one time, over all snapshots. */
  maxConcurrentRestores: number;
  /** Requests that may wait at one time, over all snapshots. */
  maxWaiters: number;
  /** Monotonic milliseconds. */
  now?: () => number;
  /** How long a VM above its floor may serve nobody. A minute outlasts the gaps in most steady traffic. */
  idleMs?: number;
  /** After this a restore is aborted. Beyond any sane restore, even emulated ones on a loaded host. */
  restoreTimeoutMs?: number;
  /** How long `drain` waits for the processes it ended. */
  destroyTimeoutMs?: number;
  onVmEvent?: (vm: Vm, event: ControlEvent) => void;
}

export interface ShelfStats {
  snapshotId: string;
  policy: PoolPolicy;
  vms: Record<VmState, number>;
  leases: number;
  waiting: number;
  /** Failed restores since the last good one, and how long until the next try. */
  failures: number;
  backoffMs: number;
  lastError: string | undefined;
}

export interface PoolStats {
  vms: Record<VmState, number>;
  waiting: number;
  capacity: { usedMemoryMb: number; memoryMb: number; usedVms: number; vms: number };
  draining: boolean;
  shelves: ShelfStats[];
}

export class Pool {
  readonly #options: PoolOptions;
  readonly #factory: VmFactory;
  readonly #capacity: Capacity;
  readonly #log: Log;
  readonly #now: () => number;
  readonly #idleMs: number;
  /** Served snapshots. The order is whose turn it is to restore: `#startRestore` moves a shelf to the end. */
  readonly #shelves = new Map<string, Shelf>();
  /** Every VM whose memory is charged, of forgotten snapshots too. */
  readonly #vms = new Set<PooledVm>();
  readonly #count = Object.fromEntries(vmStates.map((state) => [state, 0])) as Record<VmState, number>;
  #waiting = 0;
  #epoch = 0;
  #reconcileSoon = false;
  #alarm: NodeJS.Timeout | undefined;
  #alarmAtMs = Number.POSITIVE_INFINITY;
  #drained: Promise<void> | undefined;
  readonly #watches = new Set<() => void>();
  readonly #stopPublishing: () => void;

  constructor(options: PoolOptions) {
    this.#options = options;
    this.#factory = options.factory;
    this.#capacity = options.capacity;
    this.#log = options.log;
    this.#now = options.now ?? (() => performance.now());
    this.#idleMs = options.idleMs ?? 60_000;
    this.#stopPublishing = publishAtScrape(() => this.#publish());
  }

  /** Serves a snapshot by this policy from now on; VMs are made in the background. @throws ThawError `bad-config`. */
  configure(snapshotId: string, policy: PoolPolicy): void {
    checkPolicy(policy);
    if (this.#drained) throw shuttingDown();
    const shelf = this.#shelves.get(snapshotId);
    if (shelf) this.#changePolicy(shelf, policy);
    else
      this.#shelves.set(
        snapshotId,
        new Shelf(snapshotId, this.#factory.memoryMbOf(snapshotId), { ...policy }),
      );
    this.#touch();
  }

  /** Serves a snapshot no longer: idle VMs are destroyed now, leased ones when they are given back. */
  forget(snapshotId: string): void {
    const shelf = this.#shelves.get(snapshotId);
    if (shelf) this.#forget(shelf, () => notServed(snapshotId));
  }

  /**
   * A VM of this snapshot, at once when one is ready. Those who wait are served in order.
   * @throws ThawError `overloaded` (queue full), `no-capacity` (none before the deadline), `restore-failed`,
   * `incompatible`, `template-not-found` (not configured), `shutting-down`; or the reason of `options.signal`.
   */
  acquire(snapshotId: string, options: AcquireOptions): Promise<Lease> {
    const askedAtMs = this.#now();
    const shelf = this.#shelves.get(snapshotId);
    if (options.signal?.aborted) return Promise.reject(options.signal.reason);
    const ready = shelf?.ready.last;
    if (ready) return Promise.resolve(this.#grant(ready, 'warm', askedAtMs));
    const refusal = this.#refusal(snapshotId, shelf);
    return refusal ? Promise.reject(refusal) : this.#wait(shelf!, askedAtMs, options);
  }

  stats(): PoolStats {
    const { used, limits } = this.#capacity;
    return {
      vms: { ...this.#count },
      waiting: this.#waiting,
      capacity: {
        usedMemoryMb: used.memoryMb,
        memoryMb: limits.memoryMb,
        usedVms: used.vms,
        vms: limits.vms,
      },
      draining: this.#drained !== undefined,
      shelves: [...this.#shelves.values()].map((shelf) => this.#statsOf(shelf)),
    };
  }

  /**
   * Refuses new work, waits for leases until the deadline, then destroys every VM. Later calls join the first.
   * @throws ThawError `deadline-exceeded` when VMs were left that could not be ended.
   */
  drain(timeoutMs: number): Promise<void> {
    this.#drained ??= this.#drain(timeoutMs);
    return this.#drained;
  }

  async #drain(timeoutMs: number): Promise<void> {
    for (const shelf of this.#shelves.values()) this.#forget(shelf, shuttingDown);
    await this.#until(() => this.#count.leased === 0, timeoutMs);
    for (const pooled of this.#vms) if (pooled.state === 'leased') this.#end(pooled, 'the node shuts down');
    await this.#until(() => this.#vms.size === this.#count.lost, this.#options.destroyTimeoutMs ?? 10_000);
    clearTimeout(this.#alarm);
    this.#publish();
    this.#stopPublishing();
    if (this.#vms.size > 0)
      throw new ThawError('deadline-exceeded', `${this.#vms.size} VMs could not be ended while draining`);
  }

  /** Resolves when the condition holds after a change of the pool, at the latest after `timeoutMs`. */
  #until(reached: () => boolean, timeoutMs: number): Promise<void> {
    if (reached()) return Promise.resolve();
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#watches.delete(watch);
        resolve();
      };
      const timer = setTimeout(done, timeoutMs);
      const watch = () => reached() && done();
      this.#watches.add(watch);
    });
  }

  // --- Leases: the request path ---

  #grant(pooled: PooledVm, tier: Tier, askedAtMs: number): Lease {
    const waitedMs = this.#now() - askedAtMs;
    this.#epoch += 1;
    const lease = new Lease(pooled.vm, tier, waitedMs, this.#epoch, pooled.takeBack);
    pooled.leases.add(lease);
    pooled.hasServed = true;
    if (pooled.state === 'warm') this.#hop(pooled, 'leased');
    if (!pooled.hasFreeSlot) pooled.shelf.ready.remove(pooled);
    if (pooled.shelf.restoresForFloor > 0) this.#touch();
    metrics.leaseAcquire.observe({ tier }, waitedMs / 1000);
    return lease;
  }

  #takeBack = (pooled: PooledVm, lease: Lease, keep: boolean): void => {
    pooled.leases.delete(lease);
    if (!keep) pooled.retired = true;
    if (pooled.leases.size === 0) this.#rest(pooled);
    this.#place(pooled, 'warm');
    if (this.#waiting > 0) this.#touch();
  };

  #rest(pooled: PooledVm): void {
    this.#hop(pooled, 'warm');
    pooled.idleSinceMs = this.#now();
    if (pooled.shelf.surplus > 0) this.#wakeAt(pooled.idleSinceMs + this.#idleMs);
  }

  /** Puts a VM where it belongs after any change: to those who wait, among the ready, aside, or to its end. */
  #place(pooled: PooledVm, tier: Tier): void {
    const { ready, waiters } = pooled.shelf;
    for (let first = waiters.first; first && pooled.mayServe && pooled.hasFreeSlot; first = waiters.first)
      first.grant(this.#grant(pooled, tier, first.askedAtMs));
    if (pooled.mayServe && pooled.hasFreeSlot) ready.push(pooled);
    else ready.remove(pooled);
    if (pooled.idle && !pooled.mayServe) this.#end(pooled, 'recycled');
  }

  #refusal(snapshotId: string, shelf: Shelf | undefined): ThawError | undefined {
    if (this.#drained) return shuttingDown();
    if (!shelf) return notServed(snapshotId);
    if (!this.#capacity.admits(shelf.memoryMb))
      return new ThawError('no-capacity', `a VM of ${shelf.memoryMb} MB does not fit on this node`);
    if (this.#waiting >= this.#options.maxWaiters)
      return new ThawError('overloaded', `${this.#waiting} requests wait already`, { retryAfterSeconds: 1 });
    return undefined;
  }

  #wait(shelf: Shelf, askedAtMs: number, options: AcquireOptions): Promise<Lease> {
    this.#waiting += 1;
    this.#touch();
    return new Waiter(shelf.waiters, askedAtMs, options, {
      timedOut: () => this.#timedOut(shelf, options.timeoutMs),
      leave: this.#waiterLeft,
    }).lease;
  }

  #waiterLeft = (): void => {
    this.#waiting -= 1;
    // Floors held back for the one who left may be filled now.
    this.#touch();
  };

  #timedOut(shelf: Shelf, timeoutMs: number): ThawError {
    if (shelf.lastError) return restoreFailed(shelf, this.#now());
    return new ThawError('no-capacity', `no VM of ${shelf.snapshotId} came free within ${timeoutMs} ms`, {
      retryAfterSeconds: 1,
    });
  }

  #refuseAll(shelf: Shelf, why: () => ThawError): void {
    for (const waiter of shelf.waiters) waiter.refuse(why());
  }

  // --- Everything else: off the request path ---

  /** Something changed: reconcile once, after the work at hand. */
  #touch(): void {
    if (this.#reconcileSoon) return;
    this.#reconcileSoon = true;
    setImmediate(() => this.#reconcile());
  }

  #wakeAt(atMs: number): void {
    if (atMs >= this.#alarmAtMs) return;
    clearTimeout(this.#alarm);
    this.#alarmAtMs = atMs;
    this.#alarm = setTimeout(() => this.#reconcile(), Math.max(1, Math.ceil(atMs - this.#now()))).unref();
  }

  #reconcile(): void {
    this.#reconcileSoon = false;
    clearTimeout(this.#alarm);
    this.#alarmAtMs = Number.POSITIVE_INFINITY;
    const nowMs = this.#now();
    for (const shelf of this.#shelves.values())
      if (shelf.hopeless(nowMs)) this.#refuseAll(shelf, () => restoreFailed(shelf, nowMs));
    const everybodyFits = this.#restoreForWaiters(nowMs);
    if (everybodyFits) this.#restoreForFloors(nowMs);
    for (const shelf of this.#shelves.values()) this.#trim(shelf, nowMs);
    for (const watch of this.#watches) watch();
  }

  /** @returns false when somebody waits for capacity. */
  #restoreForWaiters(nowMs: number): boolean {
    let everybodyFits = true;
    for (const shelf of this.#inTurn((candidate) => candidate.restoresForWaiters, nowMs)) {
      if (this.#capacity.fits(shelf.memoryMb)) {
        this.#startRestore(shelf);
        continue;
      }
      everybodyFits = false;
      // The room being made is for this one: were it given away meanwhile, small VMs would starve a big one.
      if (this.#makeRoom(shelf)) break;
    }
    return everybodyFits;
  }

  /** Floors take only what is free: they evict nobody. */
  #restoreForFloors(nowMs: number): void {
    for (const shelf of this.#inTurn((candidate) => candidate.restoresForFloor, nowMs))
      if (this.#capacity.fits(shelf.memoryMb)) this.#startRestore(shelf);
  }

  /** Shelves that need a restore and may have one now. One that starts a restore is visited again after the others. */
  *#inTurn(needed: (shelf: Shelf) => number, nowMs: number): Generator<Shelf> {
    for (const shelf of this.#shelves.values()) {
      if (this.#count.restoring >= this.#options.maxConcurrentRestores) return;
      if (needed(shelf) <= 0) continue;
      if (shelf.backsOff(nowMs)) this.#wakeAt(shelf.retryAtMs);
      else yield shelf;
    }
  }

  #startRestore(shelf: Shelf): void {
    this.#shelves.delete(shelf.snapshotId);
    this.#shelves.set(shelf.snapshotId, shelf);
    const pooled = new PooledVm(shelf, this.#takeBack);
    this.#capacity.charge(shelf.memoryMb);
    this.#vms.add(pooled);
    shelf.vms.add(pooled);
    shelf.count.restoring += 1;
    this.#count.restoring += 1;
    void this.#restore(pooled);
  }

  async #restore(pooled: PooledVm): Promise<void> {
    const { restores, snapshotId } = pooled.shelf;
    const abort = new AbortController();
    const timeoutMs = this.#options.restoreTimeoutMs ?? 60_000;
    const tooLong = () => new ThawError('restore-failed', `the restore took longer than ${timeoutMs} ms`);
    const timer = setTimeout(() => abort.abort(tooLong()), timeoutMs);
    restores.add(abort);
    try {
      pooled.vm = await this.#factory.restore(snapshotId, abort.signal);
    } catch (error) {
      return this.#restoreFailed(pooled, error);
    } finally {
      clearTimeout(timer);
      restores.delete(abort);
    }
    this.#restored(pooled);
  }

  #restored(pooled: PooledVm): void {
    const { shelf, vm } = pooled;
    pooled.failuresBefore = shelf.failures;
    shelf.succeeded();
    vm.onEvent((event) => this.#options.onVmEvent?.(vm, event));
    void vm.ended.then((reason) => this.#vmEnded(pooled, reason));
    this.#rest(pooled);
    this.#place(pooled, pooled.vm.source);
    this.#touch();
  }

  #restoreFailed(pooled: PooledVm, error: unknown): void {
    const { shelf } = pooled;
    this.#depart(pooled, 'gone');
    if (shelf.forgotten) return;
    shelf.failed(asThawError(error, shelf.snapshotId), this.#now());
    this.#log.warn({ err: error, snapshotId: shelf.snapshotId, failures: shelf.failures }, 'restore failed');
  }

  #vmEnded(pooled: PooledVm, reason: string): void {
    if (pooled.state !== 'warm' && pooled.state !== 'leased') return;
    const { shelf, vm, hasServed, failuresBefore } = pooled;
    this.#log.warn({ vmId: vm.vmId, snapshotId: shelf.snapshotId, reason }, 'a VM ended by itself');
    if (!hasServed)
      shelf.failed(
        new ThawError('restore-failed', `a VM ended before it served: ${reason}`),
        this.#now(),
        failuresBefore,
      );
    this.#end(pooled, reason);
  }

  #end(pooled: PooledVm, reason: string): void {
    pooled.shelf.ready.remove(pooled);
    this.#hop(pooled, 'ending');
    for (const lease of pooled.leases) lease.revoke(reason);
    pooled.leases.clear();
    this.#touch();
    pooled.vm.destroy().then(
      () => this.#depart(pooled, 'gone'),
      (error) => {
        this.#log.error({ err: error, vmId: pooled.vm.vmId }, 'a VM could not be destroyed');
        this.#depart(pooled, 'lost');
      },
    );
  }

  /** The last hop. What is lost stays charged: its process may still hold the memory. */
  #depart(pooled: PooledVm, to: 'gone' | 'lost'): void {
    this.#hop(pooled, to);
    pooled.shelf.vms.delete(pooled);
    if (to === 'gone') {
      this.#vms.delete(pooled);
      this.#capacity.giveBack(pooled.shelf.memoryMb);
    }
    this.#touch();
  }

  /** Ends the least recently used VMs above their floors until a VM of `shelf` fits. @returns whether it soon will. */
  #makeRoom(shelf: Shelf): boolean {
    let { memoryMb, vms } = this.#capacity.free;
    const enough = () => memoryMb >= shelf.memoryMb && vms >= 1;
    const count = (pooled: PooledVm) => {
      memoryMb += pooled.shelf.memoryMb;
      vms += 1;
    };
    for (const pooled of this.#vms) if (pooled.state === 'ending') count(pooled);
    const evicted: PooledVm[] = [];
    for (const pooled of this.#evictable()) {
      if (enough()) break;
      count(pooled);
      evicted.push(pooled);
    }
    if (!enough()) return false;
    for (const pooled of evicted) this.#end(pooled, 'evicted');
    return true;
  }

  #evictable(): PooledVm[] {
    const spare = [...this.#shelves.values()].flatMap((shelf) => [...shelf.spare()]);
    return spare.sort((a, b) => a.idleSinceMs - b.idleSinceMs);
  }

  #trim(shelf: Shelf, nowMs: number): void {
    for (const pooled of shelf.spare()) {
      const dueMs = pooled.idleSinceMs + this.#idleMs;
      if (dueMs > nowMs && !shelf.aboveCeiling) {
        this.#wakeAt(dueMs);
        return;
      }
      this.#end(pooled, 'idle');
    }
  }

  #changePolicy(shelf: Shelf, policy: PoolPolicy): void {
    shelf.policy = { ...policy };
    for (const pooled of shelf.vms)
      if (pooled.state === 'warm' || pooled.state === 'leased') this.#place(pooled, 'warm');
  }

  #forget(shelf: Shelf, why: () => ThawError): void {
    shelf.forgotten = true;
    this.#shelves.delete(shelf.snapshotId);
    this.#refuseAll(shelf, why);
    for (const restore of shelf.restores) restore.abort(why());
    for (const pooled of shelf.vms)
      if (pooled.state === 'warm' || pooled.state === 'leased') this.#place(pooled, 'warm');
    this.#touch();
  }

  #hop(pooled: PooledVm, to: VmState): void {
    assertHop(pooled.state, to);
    for (const count of [pooled.shelf.count, this.#count]) {
      count[pooled.state] -= 1;
      count[to] += 1;
    }
    pooled.state = to;
  }

  #statsOf(shelf: Shelf): ShelfStats {
    let leases = 0;
    for (const pooled of shelf.vms) leases += pooled.leases.size;
    return {
      snapshotId: shelf.snapshotId,
      policy: shelf.policy,
      vms: { ...shelf.count },
      leases,
      waiting: shelf.waiters.size,
      failures: shelf.failures,
      backoffMs: Math.max(0, shelf.retryAtMs - this.#now()),
      lastError: shelf.lastError?.message,
    };
  }

  #publish(): void {
    for (const state of vmStates) if (state !== 'gone') metrics.vms.set({ state }, this.#count[state]);
    metrics.poolWarm.reset();
    for (const [key, shelf] of this.#shelves) metrics.poolWarm.set({ key }, shelf.count.warm);
    metrics.queueDepth.set(this.#waiting);
  }
}

const shuttingDown = () => new ThawError('shutting-down', 'the node is draining');
const notServed = (snapshotId: string) =>
  new ThawError('template-not-found', `${snapshotId} is not served on this node`);

const asThawError = (error: unknown, snapshotId: string): ThawError =>
  error instanceof ThawError
    ? error
    : new ThawError('restore-failed', `${snapshotId} could not be restored`, { cause: error });

function restoreFailed(shelf: Shelf, nowMs: number): ThawError {
  const { code, message } = shelf.lastError!;
  return new ThawError(code, message, {
    cause: shelf.lastError,
    retryAfterSeconds: Math.max(1, Math.ceil((shelf.retryAtMs - nowMs) / 1000)),
  });
}
