// Owns processes started ahead of need: a restore finds one that answers, in a jail and a network slot of its own.
// Refuses to own when to refill: that costs as much CPU as a restore and must not run beside one (cloud-hypervisor.ts).
// Invariant: a spare that has ended is never given out; at most `wanted` wait, and none before the first was asked for.
import { rm } from 'node:fs/promises';
import { newVmId } from '../../../shared/ids.ts';
import type { Log } from '../../../shared/log.ts';
import { metrics } from '../../../shared/metrics.ts';
import { Vmm, type VmmHost } from './vmm.ts';

export interface SpareVmmsOptions {
  host: VmmHost;
  /** Directory of a VM that is not there yet: what a crash leaves there is reclaimed as a VM's is. */
  dirOf: (vmId: string) => string;
  wanted: number;
  log: Log;
}

export class SpareVmms {
  readonly #options: SpareVmmsOptions;
  readonly #ready: { vmm: Vmm; dir: string }[] = [];
  #starting: Promise<void> | undefined;
  #closed = false;

  constructor(options: SpareVmmsOptions) {
    this.#options = options;
  }

  /** A spare, or a new process where none is ready. */
  async take(): Promise<Vmm> {
    const spare = this.#ready.shift();
    if (spare === undefined) {
      metrics.fallbacks.inc({ kind: 'no-spare-vmm' });
      return (await this.#start()).vmm;
    }
    if (!spare.vmm.hasEnded && (await spare.vmm.answers())) return spare.vmm;
    await discard(spare);
    return this.take();
  }

  /** Resolves when as many as wanted are ready, or starting one failed. */
  async filled(): Promise<void> {
    this.refill();
    await this.#starting;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#starting;
    await Promise.all(this.#ready.splice(0).map(discard));
  }

  /** Without effect while it is under way. */
  refill(): void {
    if (this.#starting || this.#closed || this.#ready.length >= this.#options.wanted) return;
    this.#starting = this.#fill()
      .catch((error) => this.#options.log.error({ err: error }, 'no spare VMM could be started'))
      .finally(() => {
        this.#starting = undefined;
      });
  }

  async #fill(): Promise<void> {
    while (!this.#closed && this.#ready.length < this.#options.wanted) this.#ready.push(await this.#start());
  }

  async #start(): Promise<{ vmm: Vmm; dir: string }> {
    const dir = this.#options.dirOf(newVmId());
    try {
      return { vmm: await Vmm.start(this.#options.host, dir), dir };
    } catch (error) {
      await rm(dir, { recursive: true, force: true });
      throw error;
    }
  }
}

async function discard({ vmm, dir }: { vmm: Vmm; dir: string }): Promise<void> {
  await vmm.end();
  await rm(dir, { recursive: true, force: true });
}
