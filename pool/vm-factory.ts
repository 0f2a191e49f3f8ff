// Owns making one VM that can serve: run directory → hypervisor restore → handshake → prime.
// Refuses to own how many there are (pool.ts) and how snapshots come to be (snapshot-builder.ts).
// Invariant: what it returns has answered; what failed on the way leaves no process and no file.
import { mkdir, rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import type { ControlEvent } from '../shared/agent-protocol.ts';
import { Cleanup } from '../shared/cleanup.ts';
import { ThawError } from '../shared/errors.ts';
import { newVmId } from '../shared/ids.ts';
import type { Log } from '../shared/log.ts';
import { metrics } from '../shared/metrics.ts';
import { ControlClient } from './guest/control-client.ts';
import { handshake } from './guest/handshake.ts';
import { type Connections, connectionsTo, prime } from './guest/runner-client.ts';
import { capturedFilesIn, type Paths, snapshotFilesIn } from './host/paths.ts';
import type { Address, Compatibility, GuestImage, Hypervisor, Machine } from './hypervisor/hypervisor.ts';
import { type CaptureRequest, captureVm } from './snapshot/capture.ts';
import { type CloneFiles, completeCloneFiles, takeCloneFiles } from './snapshot/clone-files.ts';
import { SnapshotLibrary } from './snapshot/library.ts';
import type { PagedLease } from './snapshot/paged-lease.ts';
import { differences, type SnapshotRecord } from './snapshot/record.ts';
import type { Vm, VmFactory } from './vm.ts';

export interface VmFactoryOptions {
  hypervisor: Hypervisor;
  image: GuestImage;
  paths: Paths;
  log: Log;
  /** The node's; a factory without one has its own. */
  library?: SnapshotLibrary;
  handshakeTimeoutMs?: number;
  primeTimeoutMs?: number;
  /** Either of the two, for a VM whose pages come from the store. */
  pagedTimeoutMs?: number;
}

/** Stage name and duration, in order, of the restore that made a VM; for benchmarks and `doctor`. */
export type StageTimes = { stage: string; elapsedMs: number }[];

const defaultPrimeTimeoutMs = 10_000;
/** On the kept connection and on a new one, each so often. */
const rehearsedRequests = 4;

export class LocalVmFactory implements VmFactory {
  readonly library: SnapshotLibrary;
  readonly #options: VmFactoryOptions;
  /** Snapshots that this hypervisor may restore. */
  readonly #compatible = new Set<string>();

  constructor(options: VmFactoryOptions) {
    this.#options = options;
    this.library = options.library ?? new SnapshotLibrary(options);
  }

  memoryMbOf(snapshotId: string): number {
    return this.library.known(snapshotId)?.memoryMb ?? 0;
  }

  /** Reads the record before the pool plans with the snapshot's size. @throws ThawError `template-not-found` | `incompatible`. */
  async load(snapshotId: string): Promise<SnapshotRecord> {
    const record = await this.library.record(snapshotId);
    if (this.#compatible.has(snapshotId)) return record;
    const ours = await this.compatibility();
    const difference = differences(record.compatibility, ours);
    if (difference)
      throw new ThawError('incompatible', `${snapshotId} was made by something else: ${difference}`);
    this.#compatible.add(snapshotId);
    return record;
  }

  /** What a snapshot must be of to be restored here. */
  compatibility(): Promise<Compatibility> {
    return this.#options.hypervisor.compatibility(this.#options.image);
  }

  forget(snapshotId: string): void {
    this.#compatible.delete(snapshotId);
    this.library.forget(snapshotId);
  }

  async restore(snapshotId: string, signal: AbortSignal, stages: StageTimes = []): Promise<Vm> {
    await this.load(snapshotId);
    return await this.#restore(snapshotId, signal, stages);
  }

  /**
   * A VM that is used a little and destroyed: shows what a restore and the requests after it need. One request is not
   * enough: each takes paths through its program that the one before did not. @param pagesPath in place of its own.
   */
  async rehearse(snapshotId: string, pagesPath: string, signal: AbortSignal): Promise<void> {
    const { prime: paths = ['/health'] } = await this.load(snapshotId);
    const vm = await this.#restore(snapshotId, signal, [], pagesPath);
    try {
      const { primeTimeoutMs = defaultPrimeTimeoutMs } = this.#options;
      for (let request = 0; request < rehearsedRequests; request++) {
        await prime(vm.runner ?? vm.agent, paths, primeTimeoutMs, signal, vm.runnerConnections);
        await prime(vm.runner ?? vm.agent, paths, primeTimeoutMs, signal);
      }
    } finally {
      await vm.destroy();
    }
  }

  async #restore(
    snapshotId: string,
    signal: AbortSignal,
    stages: StageTimes,
    pagesPath?: string,
  ): Promise<Vm> {
    const startMs = performance.now();
    const { paths, hypervisor, image } = this.#options;
    using _restored = this.library.use.hold(snapshotId);
    await using undo = new Cleanup();
    const vmId = newVmId();
    const runDir = paths.vmDir(vmId);
    await mkdir(runDir, { recursive: true, mode: 0o700 });
    undo.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
    const files = await this.#filesOf(snapshotId, runDir, pagesPath);
    undo.defer('pages', () => files.lease?.release());
    const source = files.lease ? 'remote' : 'local';
    const onStage = (stage: string, elapsedMs: number) => {
      stages.push({ stage, elapsedMs });
      metrics.restoreStage.observe({ stage, source }, elapsedMs / 1000);
    };
    const { record: shape, from, delta } = files;
    // Functions are closed, for good.
    const mayReachOut = shape.kind !== 'function';
    const request = { vmId, shape, image, runDir, from, memory: 'private', mayReachOut, onStage } as const;
    try {
      const machine = await hypervisor.restore(delta ? { ...request, delta } : request, signal);
      undo.defer('machine', () => machine.destroy());
      // A guest that waits for a page that will not come would wait for ever.
      files.lease?.onFailure(() => void machine.destroy());
      const vm = await this.#greet(machine, files, runDir, signal, onStage);
      onStage('total', performance.now() - startMs);
      machine.answered?.();
      undo.disarm();
      files.lease?.answered();
      return vm;
    } catch (error) {
      throw restoreError(snapshotId, (await failureOf(files.lease, signal)) ?? error);
    }
  }

  async #filesOf(snapshotId: string, runDir: string, pagesPath?: string): Promise<CloneFiles> {
    if (this.#options.hypervisor.capabilities.capturesMemory) {
      const files = await takeCloneFiles(this.library, snapshotId, runDir);
      return pagesPath === undefined ? files : { ...files, from: { ...files.from, pagesPath } };
    }
    // Copied by the hypervisor, whatever they are: a machine of it is never captured as it runs.
    const record = await this.library.record(snapshotId);
    const links = snapshotFilesIn(record.dir);
    return { record, from: capturedFilesIn(record.dir), delta: undefined, links };
  }

  #limitsOf({ lease }: CloneFiles) {
    const {
      handshakeTimeoutMs = 10_000,
      primeTimeoutMs = defaultPrimeTimeoutMs,
      pagedTimeoutMs = 60_000,
    } = this.#options;
    return lease
      ? { handshakeTimeoutMs: pagedTimeoutMs, primeTimeoutMs: pagedTimeoutMs }
      : { handshakeTimeoutMs, primeTimeoutMs };
  }

  async #greet(
    machine: Machine,
    files: CloneFiles,
    runDir: string,
    signal: AbortSignal,
    onStage: (stage: string, elapsedMs: number) => void,
  ): Promise<Vm> {
    const { handshakeTimeoutMs, primeTimeoutMs } = this.#limitsOf(files);
    const { record } = files;
    let stageStartMs = performance.now();
    const endStage = (stage: string) => {
      onStage(stage, performance.now() - stageStartMs);
      stageStartMs = performance.now();
    };
    const control = new ControlClient(await machine.openControl());
    const identity = await handshake(control, machine.vmId, record.nonce, handshakeTimeoutMs);
    endStage('handshake');
    signal.throwIfAborted();
    const agent = await machine.addressOf(identity.ports.agent);
    const runner = record.prime ? await machine.addressOf(identity.ports.runner) : undefined;
    const connections = runner && connectionsTo(runner);
    try {
      if (runner) await prime(runner, record.prime ?? [], primeTimeoutMs, signal, connections);
      else await prime(agent, ['/health'], primeTimeoutMs, signal);
    } catch (error) {
      void connections?.destroy();
      throw error;
    }
    endStage('prime');
    return new LocalVm(machine, control, {
      library: this.library,
      files,
      secret: identity.secret,
      agent,
      runner,
      connections,
      runDir,
    });
  }
}

/** What its pages failed with says more than what that did to the VM. */
function restoreError(snapshotId: string, error: unknown): ThawError {
  if (error instanceof ThawError && named.has(error.code)) return error;
  return new ThawError('restore-failed', `${snapshotId}: ${(error as Error).message}`, { cause: error });
}

/** A VMM that dies of a missing page may be heard of before the page is. */
const failureWaitMs = 500;

async function failureOf(lease: PagedLease | undefined, signal: AbortSignal): Promise<ThawError | undefined> {
  if (!lease || lease.failure || signal.aborted) return lease?.failure;
  const told = new Promise<ThawError>((resolve) => lease.onFailure(resolve));
  return await Promise.race([told, delay(failureWaitMs, undefined, { ref: false })]);
}

const named = new Set<string>([
  'restore-failed',
  'snapshot-damaged',
  'store-unavailable',
  'pager-lost',
  'no-space',
]);

interface VmFacts {
  library: SnapshotLibrary;
  files: CloneFiles;
  secret: string;
  agent: Address;
  runner: Address | undefined;
  connections: Connections | undefined;
  runDir: string;
}

class LocalVm implements Vm {
  readonly vmId: string;
  readonly pid: number;
  readonly source: 'local' | 'remote';
  readonly snapshotId: string;
  readonly memoryMb: number;
  readonly secret: string;
  readonly agent: Address;
  readonly runner: Address | undefined;
  readonly runnerConnections: Connections | undefined;
  readonly runnerOrigin: string | undefined;
  readonly ended: Promise<string>;
  readonly setEgress: Vm['setEgress'];
  readonly #machine: Machine;
  readonly #control: ControlClient;
  readonly #library: SnapshotLibrary;
  #files: CloneFiles;
  readonly #runDir: string;
  #lost: (reason: string) => void = () => {};
  #destroyed: Promise<void> | undefined;

  constructor(machine: Machine, control: ControlClient, facts: VmFacts) {
    this.vmId = machine.vmId;
    this.pid = machine.pid;
    this.source = facts.files.lease ? 'remote' : 'local';
    this.snapshotId = facts.files.record.snapshotId;
    this.memoryMb = facts.files.record.memoryMb;
    this.secret = facts.secret;
    this.agent = facts.agent;
    this.runner = facts.runner;
    this.runnerConnections = facts.connections;
    this.runnerOrigin = facts.runner && `http://${facts.runner.host}:${facts.runner.port}`;
    this.setEgress = machine.setEgress?.bind(machine);
    this.#machine = machine;
    this.#control = control;
    this.#library = facts.library;
    this.#files = facts.files;
    this.#runDir = facts.runDir;
    const ended = facts.library.cloneStarted(this.snapshotId);
    void machine.exited.then(ended);
    const { lease } = facts.files;
    void machine.exited.then(() => lease?.release());
    this.ended = new Promise((resolve) => {
      this.#lost = resolve;
      lease?.onFailure((failure) => resolve(`its pages could not be had: ${failure.message}`));
      void machine.exited.then((exit) =>
        resolve(`the VMM ended (${exit.signal ?? `exit code ${exit.exitCode}`})`),
      );
      control.onEvent((event) => {
        if ('event' in event && event.event === 'runner-exit')
          resolve(`the function's program ended (${event.signal ?? `exit code ${event.exitCode}`})`);
      });
    });
  }

  addressOf(guestPort: number): Promise<Address> {
    return this.#machine.addressOf(guestPort);
  }

  onEvent(listener: (event: ControlEvent) => void): void {
    this.#control.onEvent(listener);
  }

  async capture(request: CaptureRequest): Promise<SnapshotRecord> {
    this.#files = await completeCloneFiles(this.#library, this.#files);
    const onLost = (reason: string) => this.#lost(reason);
    const source = { machine: this.#machine, control: this.#control, files: this.#files, onLost };
    return await captureVm(this.#library, source, request);
  }

  destroy(): Promise<void> {
    this.#destroyed ??= (async () => {
      void this.runnerConnections?.destroy();
      try {
        await this.#machine.destroy();
      } finally {
        await rm(this.#runDir, { recursive: true, force: true });
      }
    })();
    return this.#destroyed;
  }
}
