// Owns the life of sandboxes as the control plane sees it: record first, VM second, and the record ends with the VM.
// Refuses to own the wire shape (routes/sandboxes.ts). Invariant: what a client was told exists has a record and a VM;
// a failed create leaves neither.
import { ThawError } from '../../shared/errors.ts';
import { newSandboxId, newSecret } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import type { NodeClient } from './node-client.ts';
import type { SandboxRecord, StateStore } from './state/state-store.ts';

export interface NewSandbox {
  templateId: string;
  timeoutMs: number;
  metadata: Record<string, string>;
  envVars: Record<string, string>;
  allowInternetAccess: boolean;
}

export class Sandboxes {
  readonly #node: NodeClient;
  readonly #state: StateStore;
  readonly #log: Log;
  /** What the state held before this gateway made any. */
  readonly #stale: string[];

  constructor(options: { node: NodeClient; state: StateStore; log: Log }) {
    this.#node = options.node;
    this.#state = options.state;
    this.#log = options.log;
    this.#stale = this.list().map((record) => record.sandboxId);
    this.#node.onSandboxEnded((sandboxId, reason) => {
      this.#log.info({ sandboxId, reason }, 'sandbox ended');
      void this.#state.sandboxes.remove(sandboxId);
    });
  }

  /** @throws ThawError `template-not-found` | `no-capacity` | … */
  async create(wanted: NewSandbox): Promise<SandboxRecord> {
    const { snapshotId, alias } = await this.#node.resolveTemplate(wanted.templateId);
    const starting = startingRecord(wanted, snapshotId, alias);
    await this.#state.sandboxes.create(starting);
    try {
      return await this.#start(starting, wanted);
    } catch (error) {
      await this.#node.killSandbox(starting.sandboxId).catch(() => false);
      await this.#state.sandboxes.remove(starting.sandboxId);
      throw error;
    }
  }

  async #start(starting: SandboxRecord, wanted: NewSandbox): Promise<SandboxRecord> {
    const { sandboxId, snapshotId, accessToken, endAtMs } = starting;
    const facts = await this.#node.createSandbox({
      sandboxId,
      snapshotId,
      accessToken,
      envVars: wanted.envVars,
      endAtMs,
      allowInternetAccess: wanted.allowInternetAccess,
    });
    const startedAtMs = Date.now();
    // The life asked for begins when the sandbox can be used, however long its VM took.
    const running: SandboxRecord = {
      ...starting,
      ...facts,
      state: 'running',
      startedAtMs,
      endAtMs: startedAtMs + wanted.timeoutMs,
    };
    this.#node.setSandboxEnd(sandboxId, running.endAtMs);
    if (!(await this.#state.sandboxes.update(running)))
      throw new ThawError('no-capacity', 'the sandbox ended while it was being started');
    return running;
  }

  /** @throws ThawError `sandbox-not-found`. */
  get(sandboxId: string): SandboxRecord {
    const record = this.#state.sandboxes.get(sandboxId);
    if (record === undefined || record.state === 'starting') throw notFound(sandboxId);
    return record;
  }

  list(): SandboxRecord[] {
    return this.#state.sandboxes.list();
  }

  /** @throws ThawError `sandbox-not-found`. */
  async kill(sandboxId: string): Promise<void> {
    const known = this.#state.sandboxes.get(sandboxId) !== undefined;
    const killed = await this.#node.killSandbox(sandboxId);
    await this.#state.sandboxes.remove(sandboxId);
    if (!known && !killed) throw notFound(sandboxId);
  }

  /** Moves the end to `timeoutMs` from now; `extend` never shortens. @returns the record that holds now. */
  async setTimeout(sandboxId: string, timeoutMs: number, mode: 'set' | 'extend'): Promise<SandboxRecord> {
    this.get(sandboxId);
    const endAtMs = await this.#state.sandboxes.setEnd(sandboxId, Date.now() + timeoutMs, mode);
    if (endAtMs === undefined) throw notFound(sandboxId);
    this.#node.setSandboxEnd(sandboxId, endAtMs);
    return { ...this.get(sandboxId), endAtMs };
  }

  /** Forgets what an earlier run left: its VMs ended with it. */
  async removeStale(): Promise<void> {
    const stale = this.#stale.splice(0);
    for (const sandboxId of stale) await this.#state.sandboxes.remove(sandboxId);
    if (stale.length > 0)
      this.#log.info({ count: stale.length }, 'removed sandboxes that ended with an earlier run');
  }
}

const notFound = (sandboxId: string) =>
  new ThawError('sandbox-not-found', `sandbox ${sandboxId.slice(0, 64)} was not found`);

function startingRecord(wanted: NewSandbox, snapshotId: string, alias: string | null): SandboxRecord {
  const now = Date.now();
  return {
    sandboxId: newSandboxId(),
    templateId: wanted.templateId,
    alias,
    snapshotId,
    accessToken: newSecret(),
    metadata: wanted.metadata,
    state: 'starting',
    startedAtMs: now,
    endAtMs: now + wanted.timeoutMs,
    cpuCount: 0,
    memoryMb: 0,
    diskSizeMb: 0,
    allowInternetAccess: wanted.allowInternetAccess,
  };
}
