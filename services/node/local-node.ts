// Owns a node in this process: the NodeClient over a pool, its snapshots and its sandboxes.
// Refuses to own their parts, which it is given. Invariant: a version is served exactly while the pool is configured for
// its snapshot; nothing here outlives `drain`.
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { MachineShape } from '../../pool/hypervisor/hypervisor.ts';
import type { Pool, PoolPolicy } from '../../pool/pool.ts';
import type { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import type { StoredSnapshots } from '../../pool/snapshot/stored-snapshots.ts';
import type { SnapshotBuilder, Vm } from '../../pool/vm.ts';
import type { ControlEvent, LogEvent, SandboxInit } from '../../shared/agent-protocol.ts';
import {
  type EgressAbility,
  type EgressRules,
  openEgress,
  reachesInternet,
  requireKeepable,
} from '../../shared/egress.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type {
  CaptureSandboxRequest,
  DeployRequest,
  EndpointRequest,
  FunctionVersion,
  GuestRequest,
  GuestResponse,
  NodeClient,
  SandboxFacts,
  SandboxRequest,
  SnapshotFacts,
  SnapshotVerification,
} from '../gateway/node-client.ts';
import { buildEndpoint } from './endpoint-build.ts';
import { FunctionLogs } from './function-logs.ts';
import { Invocations } from './invocations.ts';
import { keepEgress, NodeSandboxes } from './node-sandboxes.ts';
import { NodeSnapshots } from './node-snapshots.ts';

export interface LocalNodeOptions {
  pool: Pool;
  builder: SnapshotBuilder;
  /** Reads a snapshot's record before the pool plans with it. */
  loadSnapshot(snapshotId: string): Promise<MachineShape>;
  forgetSnapshot(snapshotId: string): void;
  bundlePath(sha256: string): string;
  log: Log;
  /** For /readyz and `thaw doctor`: what runs the VMs, and what is slower than it could be. */
  hypervisor: string;
  notes: string[];
  /** As `notes`, of what changes. */
  currentNotes?: () => string[];
  baseShape: MachineShape;
  basePolicy: PoolPolicy;
  diskSizeMb: number;
  /** What its VMs may be held to outside. */
  egress: EgressAbility;
  library: SnapshotLibrary;
  /** Absent where no store is configured. */
  stored?: StoredSnapshots | undefined;
}

const unfiltered = ({ egress: _, ...request }: SandboxRequest): SandboxRequest => request;

const keyOf = ({ name, version }: Pick<FunctionVersion, 'name' | 'version'>) => `${name}@${version}`;

export class LocalNode implements NodeClient {
  readonly #options: LocalNodeOptions;
  readonly #pool: Pool;
  readonly #served = new Map<string, FunctionVersion>();
  /** Whose log a VM's lines belong to. */
  readonly #nameOfSnapshot = new Map<string, string>();
  readonly #logs = new FunctionLogs();
  readonly #invocations: Invocations;
  readonly #sandboxes: NodeSandboxes;
  readonly #snapshots: NodeSnapshots;
  #baseSnapshotId: string | undefined;

  constructor(options: LocalNodeOptions) {
    this.#options = options;
    this.#pool = options.pool;
    this.#invocations = new Invocations(options.pool);
    this.#sandboxes = new NodeSandboxes(options.pool, options.log);
    const { library, stored, pool, log, loadSnapshot: load, basePolicy } = options;
    this.#snapshots = new NodeSnapshots({ library, stored, pool, log, load, maxVms: basePolicy.max });
  }

  /** Makes the `base` template unless it is there, and keeps its VMs warm. */
  async start(onProgress?: (step: string) => void): Promise<void> {
    const { builder, baseShape, basePolicy } = this.#options;
    this.#baseSnapshotId = await builder.ensureTemplate(baseShape, onProgress);
    await this.#options.loadSnapshot(this.#baseSnapshotId);
    this.#pool.configure(this.#baseSnapshotId, basePolicy);
  }

  /** For the pool's `onVmEvent`. */
  onVmEvent(vm: Vm, event: ControlEvent): void {
    const name = this.#nameOfSnapshot.get(vm.snapshotId);
    if (name !== undefined && event.event === 'log') this.#logs.add(name, event);
  }

  async serve(version: FunctionVersion): Promise<{ snapshotId: string }> {
    const { loadSnapshot } = this.#options;
    const known = await this.#has(version.snapshotId);
    // Without a bundle there is nothing to build it from: the load below says what is wrong with it.
    const keeps = known || version.bundleSha256 === null;
    const snapshotId = keeps ? version.snapshotId : await this.#rebuild(version, version.bundleSha256!);
    await loadSnapshot(snapshotId);
    const { warm, recycle, concurrency } = version.manifest;
    this.#pool.configure(snapshotId, { ...warm, recycle, concurrency });
    this.#nameOfSnapshot.set(snapshotId, version.name);
    this.#served.set(keyOf(version), { ...version, snapshotId });
    return { snapshotId };
  }

  /** Here, or in the store, from where it comes. */
  async #has(snapshotId: string): Promise<boolean> {
    const { builder, library, log } = this.#options;
    if (await builder.has(snapshotId)) return true;
    try {
      await library.record(snapshotId);
    } catch (error) {
      log.info({ snapshotId, reason: (error as Error).message }, 'a snapshot is not to be had');
    }
    return await builder.has(snapshotId);
  }

  /** Its snapshot is missing, or another hypervisor or image made it: the bundle has all that is needed. */
  #rebuild(version: FunctionVersion, bundleSha256: string): Promise<string> {
    const { log, bundlePath } = this.#options;
    log.info({ function: version.name, version: version.version }, 'rebuilding the snapshot of a version');
    return this.deploy({ ...version, bundleSha256, bundlePath: bundlePath(bundleSha256) }).then(
      ({ snapshotId }) => snapshotId,
    );
  }

  async deploy(request: DeployRequest): Promise<{ snapshotId: string }> {
    const { manifest, bundlePath, bundleSha256, onOutput, signal } = request;
    const build = { manifest, bundlePath, bundleSha256, ...(onOutput ? { onOutput } : {}) };
    const snapshotId = await this.#options.builder.buildFunction(
      build,
      signal ?? new AbortController().signal,
    );
    const { library } = this.#options;
    library.added(await library.record(snapshotId));
    return { snapshotId };
  }

  async deployFromSnapshot(request: EndpointRequest): Promise<{ snapshotId: string }> {
    const { snapshotId } = await this.#snapshots.find(request.fromSnapshot);
    if (snapshotId !== this.#baseSnapshotId) await this.#snapshots.serve(snapshotId);
    const { library } = this.#options;
    return { snapshotId: await buildEndpoint({ pool: this.#pool, library }, snapshotId, request) };
  }

  async retire(version: FunctionVersion): Promise<void> {
    this.#served.delete(keyOf(version));
    this.#pool.forget(version.snapshotId);
    this.#nameOfSnapshot.delete(version.snapshotId);
    this.#options.forgetSnapshot(version.snapshotId);
    await this.#options.library.withdraw(version.snapshotId);
    await this.#options.builder.remove(version.snapshotId);
    if (![...this.#served.values()].some(({ name }) => name === version.name))
      this.#logs.forget(version.name);
  }

  async invoke(version: FunctionVersion, request: GuestRequest): Promise<GuestResponse> {
    if (!this.#served.has(keyOf(version))) await this.#take(version);
    return await this.#invocations.invoke(version, request);
  }

  /** It was deployed through another node of this cluster. @throws ThawError `function-not-found`. */
  async #take(version: FunctionVersion): Promise<void> {
    const key = keyOf(version);
    const known = await this.#has(version.snapshotId);
    if (!known) throw new ThawError('function-not-found', `${key} is not on this node, nor in its store`);
    await this.serve(version);
  }

  async upgrade(
    version: FunctionVersion,
    request: IncomingMessage,
    path: string,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    if (!this.#served.has(keyOf(version))) await this.#take(version);
    await this.#invocations.upgrade(version, request, path, socket, head);
  }

  logs(name: string, signal: AbortSignal): AsyncIterable<LogEvent> {
    return this.#logs.follow(name, signal);
  }

  async resolveTemplate(templateId: string): Promise<{ snapshotId: string; alias: string | null }> {
    if (this.#baseSnapshotId === undefined)
      throw new ThawError('no-capacity', 'the base template is being made', { retryAfterSeconds: 5 });
    if (templateId === 'base') return { snapshotId: this.#baseSnapshotId, alias: 'base' };
    if (templateId === this.#baseSnapshotId) return { snapshotId: templateId, alias: 'base' };
    const { snapshotId, names, kind } = await this.#snapshots.find(templateId);
    if (kind === 'function')
      throw new ThawError('template-not-found', `${templateId} is a function's snapshot, no template`);
    return { snapshotId, alias: names[0] ?? null };
  }

  async baseOfSize(shape: { memoryMb?: number; cpuCount?: number }): Promise<{ snapshotId: string }> {
    const { baseShape, builder } = this.#options;
    const { memoryMb = baseShape.memoryMb, cpuCount = baseShape.vcpus } = shape;
    return { snapshotId: await builder.ensureTemplate({ memoryMb, vcpus: cpuCount }) };
  }

  async createSandbox(request: SandboxRequest): Promise<SandboxFacts> {
    const { diskSizeMb, library, egress } = this.#options;
    const rules = request.egress ?? openEgress;
    requireKeepable(egress, rules);
    if (request.snapshotId !== this.#baseSnapshotId) await this.#snapshots.serve(request.snapshotId);
    const { memoryMb, vcpus } = await library.record(request.snapshotId);
    // Where nothing filters, what was asked for holds by itself.
    await this.#sandboxes.create(
      egress === 'by-address' ? { ...request, egress: rules } : unfiltered(request),
    );
    return { cpuCount: vcpus, memoryMb, diskSizeMb, reachesInternet: reachesInternet(egress, rules) };
  }

  async setSandboxEgress(sandboxId: string, rules: EgressRules): Promise<{ reachesInternet: boolean }> {
    const { egress } = this.#options;
    const { lease } = this.#sandboxes.get(sandboxId);
    requireKeepable(egress, rules);
    if (egress === 'by-address') await keepEgress(lease.vm, rules);
    return { reachesInternet: reachesInternet(egress, rules) };
  }

  setUpSandbox(sandboxId: string, init: SandboxInit): Promise<void> {
    return this.#sandboxes.setUp(sandboxId, init);
  }

  async killSandbox(sandboxId: string): Promise<boolean> {
    return this.#sandboxes.kill(sandboxId);
  }

  setSandboxEnd(sandboxId: string, endAtMs: number): void {
    this.#sandboxes.setEnd(sandboxId, endAtMs);
  }

  onSandboxEnded(listener: (sandboxId: string, reason: string) => void): void {
    this.#sandboxes.onEnded(listener);
  }

  onSandboxExpired(listener: (sandboxId: string) => void): void {
    this.#sandboxes.onExpired(listener);
  }

  sandboxLog(sandboxId: string): readonly LogEvent[] {
    return this.#sandboxes.has(sandboxId) ? this.#sandboxes.get(sandboxId).log : [];
  }

  async captureSandbox(sandboxId: string, request: CaptureSandboxRequest): Promise<SnapshotFacts> {
    const facts = await this.#snapshots.capture(this.#sandboxes.get(sandboxId), request);
    if (!request.keepRunning) this.#sandboxes.kill(sandboxId);
    return facts;
  }

  listSnapshots(): Promise<SnapshotFacts[]> {
    return this.#snapshots.list();
  }

  inspectSnapshot(idOrName: string): Promise<SnapshotFacts> {
    return this.#snapshots.inspect(idOrName);
  }

  verifySnapshot(idOrName: string): Promise<SnapshotVerification> {
    return this.#snapshots.verify(idOrName);
  }

  removeSnapshot(idOrName: string): Promise<void> {
    return this.#snapshots.remove(idOrName);
  }

  sandboxRequest(sandboxId: string, guestPort: number, request: GuestRequest): Promise<GuestResponse> {
    return this.#sandboxes.request(sandboxId, guestPort, request);
  }

  sandboxUpgrade(
    sandboxId: string,
    guestPort: number,
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    return this.#sandboxes.upgrade(sandboxId, guestPort, request, socket, head);
  }

  pools(): Record<string, Record<string, number>> {
    const shelves = new Map(this.#pool.stats().shelves.map((shelf) => [shelf.snapshotId, shelf]));
    const rows = [...this.#served].flatMap(([key, { snapshotId }]) => {
      const shelf = shelves.get(snapshotId);
      return shelf ? [[key, { ...shelf.vms, waiting: shelf.waiting }] as const] : [];
    });
    return Object.fromEntries(rows);
  }

  /** Of which VMs run, or are kept ready, or somebody waits for one; and the base, which everything starts from. */
  snapshotsInUse(): ReadonlySet<string> {
    const used = this.#pool.stats().shelves.filter(({ policy, vms, waiting }) => {
      const { gone, ...there } = vms;
      return policy.min + waiting + Object.values(there).reduce((sum, count) => sum + count, 0) > 0;
    });
    const base = this.#baseSnapshotId === undefined ? [] : [this.#baseSnapshotId];
    return new Set([...used.map(({ snapshotId }) => snapshotId), ...base]);
  }

  async health() {
    const { vms, shelves, draining } = this.#pool.stats();
    const { hypervisor, notes, currentNotes = () => [] } = this.#options;
    const failing = shelves.flatMap(({ snapshotId, failures, lastError }) =>
      failures > 0 ? [`${snapshotId}: ${failures} restores failed: ${lastError}`] : [],
    );
    const ready = this.#baseSnapshotId !== undefined && !draining;
    return {
      ready,
      hypervisor,
      vms: { ...vms },
      notes: [...notes, ...currentNotes(), ...failing, ...this.#storeNotes()],
    };
  }

  #storeNotes(): string[] {
    const { waiting, failing } = this.#options.stored?.backlog ?? { waiting: 0, failing: false };
    return failing ? [`the store does not answer: ${waiting} snapshots wait to be published`] : [];
  }

  /** Sandboxes end at once, for their VMs end with this process; requests in work are waited for. */
  drain(timeoutMs: number): Promise<void> {
    this.#sandboxes.endAll('the node shuts down');
    return this.#pool.drain(timeoutMs);
  }
}
