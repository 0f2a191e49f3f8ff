// Owns the life of sandboxes as the control plane sees it: record first, VM second, and the record ends with the VM.
// Refuses to own the wire shape (routes/sandboxes.ts). Invariant: what a client was told exists has a record and a VM;
// a failed create leaves neither.
import { agentPort } from '../../shared/agent-protocol.ts';
import type { EgressRules } from '../../shared/egress.ts';
import { ThawError } from '../../shared/errors.ts';
import { newSandboxId, newSecret } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import type { SandboxNetwork } from './network-config.ts';
import type { NodeClient, SandboxRequest, SnapshotFacts } from './node-client.ts';
import { SandboxLogs } from './sandbox-logs.ts';
import type { SandboxRecord, StateStore } from './state/state-store.ts';
import type { TemplateSource, Templates } from './templates.ts';

export interface NewSandbox {
  templateId: string;
  timeoutMs: number;
  metadata: Record<string, string>;
  envVars: Record<string, string>;
  network: SandboxNetwork;
  /** False: its ports are served only to those who send its traffic token. */
  isPublic: boolean;
  onTimeout: 'kill' | 'pause';
  autoResume: boolean;
}

/** Far above what an agent takes that lives. */
const healthTimeoutMs = 5_000;

export class Sandboxes {
  readonly #templates: Templates;
  readonly #node: NodeClient;
  readonly #state: StateStore;
  readonly #log: Log;
  /** What clients are told of each one's life. */
  readonly logs = new SandboxLogs();
  readonly #resuming = new Map<string, Promise<SandboxRecord>>();
  /** What the state held before this gateway made any. */
  readonly #stale: string[];

  constructor(options: { node: NodeClient; state: StateStore; log: Log; templates: Templates }) {
    this.#templates = options.templates;
    this.#node = options.node;
    this.#state = options.state;
    this.#log = options.log;
    this.#stale = this.list().flatMap(({ sandboxId, state }) => (state === 'paused' ? [] : [sandboxId]));
    this.#node.onSandboxEnded((sandboxId, reason) => {
      this.#log.info({ sandboxId, reason }, 'sandbox ended');
      this.logs.forget(sandboxId);
      void this.#state.sandboxes.remove(sandboxId);
    });
    this.#node.onSandboxExpired((sandboxId) => void this.#pauseOrKill(sandboxId));
  }

  /** @throws ThawError `template-not-found` | `no-capacity` | … */
  async create(wanted: NewSandbox): Promise<SandboxRecord> {
    for (;;) {
      const source = await this.#templates.resolve(wanted.templateId);
      try {
        return await this.#createFrom(source, wanted);
      } catch (error) {
        // A rebuild may have moved the name meanwhile, and what it stood for is gone.
        const now = await this.#templates.resolve(wanted.templateId).catch(() => source);
        if (now.snapshotId === source.snapshotId) throw error;
      }
    }
  }

  async #createFrom(source: TemplateSource, wanted: NewSandbox): Promise<SandboxRecord> {
    const { templateId, snapshotId, alias } = source;
    const starting = startingRecord({ ...wanted, templateId }, snapshotId, alias);
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
    const { sandboxId } = starting;
    const { reachesInternet, ...facts } = await this.#node.createSandbox(requestOf(starting));
    const startedAtMs = Date.now();
    // The life asked for begins when the sandbox can be used, however long its VM took.
    const running: SandboxRecord = {
      ...starting,
      ...facts,
      allowInternetAccess: reachesInternet,
      state: 'running',
      startedAtMs,
      endAtMs: startedAtMs + wanted.timeoutMs,
    };
    this.#node.setSandboxEnd(sandboxId, running.endAtMs);
    if (!(await this.#state.sandboxes.update(running)))
      throw new ThawError('no-capacity', 'the sandbox ended while it was being started');
    this.logs.say(sandboxId, 'sandbox started', { templateId: starting.templateId });
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
    const known = this.#state.sandboxes.get(sandboxId);
    const killed = await this.#node.killSandbox(sandboxId);
    this.logs.forget(sandboxId);
    await this.#state.sandboxes.remove(sandboxId);
    if (known?.state === 'paused') await this.#discard(known.snapshotId);
    if (known === undefined && !killed) throw notFound(sandboxId);
  }

  /** @throws ThawError `guest-unhealthy` while its agent does not answer. */
  async requireHealthy(sandboxId: string): Promise<void> {
    this.#running(sandboxId);
    const signal = AbortSignal.timeout(healthTimeoutMs);
    const asked = {
      method: 'GET',
      path: '/health',
      headers: {},
      body: null,
      signal,
      timeoutMs: healthTimeoutMs,
    };
    const answer = await this.#node
      .sandboxRequest(sandboxId, agentPort, asked)
      .catch((error: Error) => error);
    if (answer instanceof Error)
      throw new ThawError('guest-unhealthy', `the agent in the sandbox does not answer: ${answer.message}`);
    answer.body.on('error', () => {}).resume();
    if (answer.status >= 300)
      throw new ThawError('guest-unhealthy', `the agent in the sandbox answers ${answer.status}`);
  }

  /** Its memory becomes a snapshot and its VM ends; `connect` brings it back. @throws ThawError `conflict` when it is paused. */
  async pause(sandboxId: string): Promise<void> {
    const record = this.#running(sandboxId);
    const names = [pauseNameOf(sandboxId)];
    const { snapshotId } = await this.#node.captureSandbox(sandboxId, { names, keepRunning: false });
    const paused: SandboxRecord = { ...record, state: 'paused', snapshotId };
    if (await this.#state.sandboxes.update(paused)) return this.logs.say(sandboxId, 'sandbox paused');
    await this.#discard(snapshotId);
    throw notFound(sandboxId);
  }

  /** A running one lives on, at least this long; a paused one goes on where it was, under the same id and token. */
  async connect(sandboxId: string, timeoutMs: number): Promise<{ record: SandboxRecord; resumed: boolean }> {
    if (this.get(sandboxId).state === 'running')
      return { record: await this.setTimeout(sandboxId, timeoutMs, 'extend'), resumed: false };
    let resuming = this.#resuming.get(sandboxId);
    if (!resuming) {
      resuming = this.#resume(this.get(sandboxId), timeoutMs).finally(() => this.#resuming.delete(sandboxId));
      this.#resuming.set(sandboxId, resuming);
    }
    return { record: await resuming, resumed: true };
  }

  async #resume(record: SandboxRecord, timeoutMs: number): Promise<SandboxRecord> {
    const { sandboxId, snapshotId } = record;
    const running: SandboxRecord = { ...record, state: 'running', endAtMs: Date.now() + timeoutMs };
    await this.#node.createSandbox(requestOf(running));
    if (!(await this.#state.sandboxes.update(running))) {
      await this.#node.killSandbox(sandboxId);
      throw notFound(sandboxId);
    }
    this.logs.say(sandboxId, 'sandbox resumed');
    // The VM holds links of its own to all it needs.
    await this.#discard(snapshotId);
    return running;
  }

  /** Replaces its egress rules. @throws ThawError `conflict` for a paused one, `not-implemented` for what its node cannot keep. */
  async setEgress(sandboxId: string, egress: EgressRules): Promise<void> {
    this.#running(sandboxId);
    const { reachesInternet } = await this.#node.setSandboxEgress(sandboxId, egress);
    const record = this.#running(sandboxId);
    const network = { ...record.network, egress };
    const changed: SandboxRecord = { ...record, network, allowInternetAccess: reachesInternet };
    if (!(await this.#state.sandboxes.update(changed))) throw notFound(sandboxId);
    this.logs.say(sandboxId, 'network rules replaced');
  }

  /** @throws ThawError `conflict` for a paused one or a name that is taken. */
  async snapshot(sandboxId: string, names: string[]): Promise<SnapshotFacts> {
    this.#running(sandboxId);
    const facts = await this.#node.captureSandbox(sandboxId, { names, keepRunning: true });
    this.logs.say(sandboxId, 'snapshot taken', { snapshotId: facts.snapshotId });
    return facts;
  }

  /** Clones of it as it is now, each a sandbox of its own; one that fails does not end the others. */
  async fork(
    sandboxId: string,
    count: number,
    timeoutMs: number,
  ): Promise<PromiseSettledResult<SandboxRecord>[]> {
    const source = this.#running(sandboxId);
    const { snapshotId } = await this.snapshot(sandboxId, []);
    const wanted: NewSandbox = {
      templateId: snapshotId,
      timeoutMs,
      metadata: source.metadata,
      envVars: source.envVars ?? {},
      network: networkIn(source),
      isPublic: source.trafficAccessToken === undefined,
      onTimeout: source.onTimeout ?? 'kill',
      autoResume: source.autoResume ?? false,
    };
    const forks = await Promise.allSettled(Array.from({ length: count }, () => this.create(wanted)));
    await this.#discard(snapshotId);
    return forks;
  }

  /** @throws ThawError `sandbox-not-found`, `conflict` for a paused one. */
  #running(sandboxId: string): SandboxRecord {
    const record = this.get(sandboxId);
    if (record.state === 'paused') throw new ThawError('conflict', `sandbox ${sandboxId} is paused`);
    return record;
  }

  /** The memory that nobody needs any more. */
  async #discard(snapshotId: string): Promise<void> {
    await this.#node.removeSnapshot(snapshotId).catch((error: Error) => {
      this.#log.warn({ snapshotId, reason: error.message }, 'a snapshot could not be removed');
    });
  }

  async #pauseOrKill(sandboxId: string): Promise<void> {
    try {
      await this.pause(sandboxId);
    } catch (error) {
      const reason = (error as Error).message;
      this.#log.warn({ sandboxId, reason }, 'it could not be paused at its end');
      await this.kill(sandboxId).catch(() => {});
    }
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

/** Names the memory of a paused sandbox, which is nobody's snapshot. */
export const pauseNameOf = (sandboxId: string): string => `paused-${sandboxId}`;

const notFound = (sandboxId: string) =>
  new ThawError('sandbox-not-found', `sandbox ${sandboxId.slice(0, 64)} was not found`);

/** Records of before there were rules have the one word. */
const networkIn = ({ network, allowInternetAccess }: SandboxRecord): SandboxNetwork =>
  network ?? { egress: { allowInternetAccess, allowOut: [], denyOut: [] } };

const requestOf = (record: SandboxRecord): SandboxRequest => ({
  sandboxId: record.sandboxId,
  snapshotId: record.snapshotId,
  accessToken: record.accessToken,
  envVars: record.envVars ?? {},
  endAtMs: record.endAtMs,
  ...networkIn(record),
  asksAtEnd: record.onTimeout === 'pause',
});

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
    allowInternetAccess: wanted.network.egress.allowInternetAccess,
    network: wanted.network,
    ...(wanted.isPublic ? {} : { trafficAccessToken: newSecret() }),
    onTimeout: wanted.onTimeout,
    autoResume: wanted.autoResume,
    envVars: wanted.envVars,
  };
}
