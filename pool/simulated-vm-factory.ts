// Owns VMs without processes, for tests of the pool: each restore and destroy takes the time, or fails, as told.
// Invariant: like a real factory, a restore that rejects has left nothing behind, and an aborted one rejects.
import type { ControlEvent } from '../shared/agent-protocol.ts';
import { ThawError } from '../shared/errors.ts';
import { newSecret, newVmId } from '../shared/ids.ts';
import type { Address } from './hypervisor/hypervisor.ts';
import type { Vm, VmFactory } from './vm.ts';

export interface SimulatedVmFactoryOptions {
  memoryMbOf?: (snapshotId: string) => number;
  /** Asked at each restore: how long it takes, and with what it then fails. */
  plan?: (snapshotId: string) => { restoreMs: number; error?: Error };
  destroyMs?: number;
}

export class SimulatedVmFactory implements VmFactory {
  readonly #options: SimulatedVmFactoryOptions;
  /** Not destroyed yet. */
  readonly live = new Set<SimulatedVm>();
  /** Snapshot ids in the order their restores were asked for. */
  readonly asked: string[] = [];
  restoring = 0;

  constructor(options: SimulatedVmFactoryOptions = {}) {
    this.#options = options;
  }

  memoryMbOf(snapshotId: string): number {
    return this.#options.memoryMbOf?.(snapshotId) ?? 256;
  }

  async restore(snapshotId: string, signal: AbortSignal): Promise<SimulatedVm> {
    const { restoreMs, error } = this.#options.plan?.(snapshotId) ?? { restoreMs: 10 };
    this.asked.push(snapshotId);
    this.restoring += 1;
    try {
      await elapse(restoreMs, signal);
      if (error) throw error;
    } finally {
      this.restoring -= 1;
    }
    const vm = new SimulatedVm(snapshotId, this.memoryMbOf(snapshotId), this.#options.destroyMs ?? 0, () =>
      this.live.delete(vm),
    );
    this.live.add(vm);
    return vm;
  }
}

export class SimulatedVm implements Vm {
  readonly vmId = newVmId();
  readonly pid = 0;
  readonly source = 'local' as const;
  readonly secret = newSecret();
  readonly agent: Address = { host: '127.0.0.1', port: 1 };
  readonly runner: Address = { host: '127.0.0.1', port: 1 };
  readonly ended: Promise<string>;
  readonly snapshotId: string;
  readonly memoryMb: number;
  readonly #destroyMs: number;
  readonly #onDestroyed: () => void;
  readonly #listeners: ((event: ControlEvent) => void)[] = [];
  #end!: (reason: string) => void;
  destroyed: Promise<void> | undefined;

  constructor(snapshotId: string, memoryMb: number, destroyMs: number, onDestroyed: () => void) {
    this.snapshotId = snapshotId;
    this.memoryMb = memoryMb;
    this.#destroyMs = destroyMs;
    this.#onDestroyed = onDestroyed;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
  }

  async addressOf(port: number): Promise<Address> {
    return { host: '127.0.0.1', port };
  }

  onEvent(listener: (event: ControlEvent) => void): void {
    this.#listeners.push(listener);
  }

  emit(event: ControlEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  /** Its process ends by itself. */
  crash(reason = 'killed by the test'): void {
    this.#end(reason);
  }

  async capture(): Promise<never> {
    throw new ThawError('not-implemented', 'a simulated VM holds nothing');
  }

  destroy(): Promise<void> {
    this.destroyed ??= elapse(this.#destroyMs).then(() => {
      this.#end('destroyed');
      this.#onDestroyed();
    });
    return this.destroyed;
  }
}

function elapse(durationMs: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const timer = setTimeout(resolve, durationMs);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

export const restoreError = (): ThawError => new ThawError('restore-failed', 'the simulated restore failed');
