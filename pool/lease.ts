// Owns one use of a VM: who has it, since when, and its single end.
// Refuses to own what becomes of the VM afterwards (pool.ts decides).
// Invariant: a lease ends exactly once: released, discarded, or revoked because its VM ended.
import { ThawError } from '../shared/errors.ts';
import type { Tier, Vm } from './vm.ts';

/** `keep` is false when the holder saw that the VM must not serve again. */
export type TakeBack = (lease: Lease, keep: boolean) => void;

export class Lease {
  readonly vm: Vm;
  /** `warm` when a VM was there that needed no restore, else how the restored one was made. */
  readonly tier: Tier;
  readonly waitedMs: number;
  /** Grows with every lease of this pool: of two holders of one VM, the one with the lower epoch must stop. */
  readonly epoch: number;
  #takeBack: TakeBack;
  #active = true;
  #vmEnded: string | undefined;
  #abort: AbortController | undefined;

  constructor(vm: Vm, tier: Tier, waitedMs: number, epoch: number, takeBack: TakeBack) {
    this.vm = vm;
    this.tier = tier;
    this.waitedMs = waitedMs;
    this.epoch = epoch;
    this.#takeBack = takeBack;
  }

  /** False after its end, whatever it was. */
  get active(): boolean {
    return this.#active;
  }

  /** Why the VM was lost under this lease; undefined while it lives, and after a release. */
  get vmEnded(): string | undefined {
    return this.#vmEnded;
  }

  /** Aborts with ThawError `vm-died` when the VM is lost under this lease; never after a release. */
  get signal(): AbortSignal {
    // Made when first asked for: most requests end without it.
    this.#abort ??= new AbortController();
    if (this.#vmEnded !== undefined) this.#abort.abort(vmDied(this.#vmEnded));
    return this.#abort.signal;
  }

  /** Gives the VM back. Later calls do nothing. */
  release(): void {
    this.#end(true);
  }

  /** Gives the VM back as unfit: it takes no new lease and is destroyed when its other leases have ended. */
  discard(): void {
    this.#end(false);
  }

  /** For the pool, when the VM ended first. */
  revoke(reason: string): void {
    if (!this.#active) return;
    this.#active = false;
    this.#vmEnded = reason;
    this.#abort?.abort(vmDied(reason));
  }

  [Symbol.dispose](): void {
    this.release();
  }

  #end(keep: boolean): void {
    if (!this.#active) return;
    this.#active = false;
    this.#takeBack(this, keep);
  }
}

const vmDied = (reason: string) => new ThawError('vm-died', `the VM ended: ${reason}`);
