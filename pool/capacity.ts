// Owns the host's budget for VMs: memory and process count. Refuses to own who may use it.
// Invariant: what is charged never exceeds the limits, and each charge is given back at most once.

export interface CapacityLimits {
  memoryMb: number;
  /** VMM processes at one time, whatever their state. */
  vms: number;
}

export class Capacity {
  readonly limits: Readonly<CapacityLimits>;
  #memoryMb = 0;
  #vms = 0;

  constructor(limits: CapacityLimits) {
    this.limits = { ...limits };
  }

  get used(): CapacityLimits {
    return { memoryMb: this.#memoryMb, vms: this.#vms };
  }

  get free(): CapacityLimits {
    return { memoryMb: this.limits.memoryMb - this.#memoryMb, vms: this.limits.vms - this.#vms };
  }

  /** False when a VM of this size could not run here even alone. */
  admits(memoryMb: number): boolean {
    return memoryMb <= this.limits.memoryMb && this.limits.vms >= 1;
  }

  fits(memoryMb: number): boolean {
    return this.#memoryMb + memoryMb <= this.limits.memoryMb && this.#vms < this.limits.vms;
  }

  /** @throws Error when it does not fit: callers ask `fits` first. */
  charge(memoryMb: number): void {
    if (!this.fits(memoryMb)) throw new Error(`capacity exceeded by a VM of ${memoryMb} MB`);
    this.#memoryMb += memoryMb;
    this.#vms += 1;
  }

  giveBack(memoryMb: number): void {
    if (this.#vms < 1 || this.#memoryMb < memoryMb) throw new Error('capacity given back twice');
    this.#memoryMb -= memoryMb;
    this.#vms -= 1;
  }
}
