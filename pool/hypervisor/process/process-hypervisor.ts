// Owns the `process` driver: the guest agent as a plain host process, with the rest of Thaw unchanged around it.
// Refuses to own isolation: there is none, so it is for tests and control-path benchmarks and `auto` never picks it.
// Invariant: what it calls a snapshot holds files only; a restore starts the programs anew and says so by Capabilities.
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { arch, availableParallelism } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ThawError } from '../../../shared/errors.ts';
import { type Child, startChild } from '../../host/child.ts';
import { recordProcess } from '../../host/process-table.ts';
import type {
  BootRequest,
  Capabilities,
  CapturedFiles,
  Compatibility,
  GuestImage,
  Hypervisor,
  Machine,
  RestoreRequest,
} from '../hypervisor.ts';
import { ProcessMachine } from './process-machine.ts';
import { parseRunningState, rootFilesOf } from './root-files.ts';

/** An agent answers after a fifth of a second, and its remembered program after as long as that takes to load. */
const startTimeoutMs = 120_000;
/** The agent tells nobody when its socket is there. */
const probeMs = 5;

export interface ProcessOptions {
  /** The guest agent's program file. An option, because the pool imports no services. */
  agentProgram: string;
  /** Node that runs it; this process's own unless told. */
  nodeProgram?: string;
}

export function createProcessHypervisor(options: ProcessOptions): Hypervisor {
  return new ProcessHypervisor(options);
}

/** Stands where other drivers take a guest image: the host itself is what the agent runs on. */
export const hostAsImage: GuestImage = {
  digest: 'host',
  kernelPath: '/dev/null',
  vmlinuxPath: '/dev/null',
  initrdPath: '/dev/null',
  rootPath: '/dev/null',
  blankDiskPath: '/dev/null',
};

class ProcessHypervisor implements Hypervisor {
  readonly name = 'process';
  readonly capabilities: Capabilities = {
    copyOnWriteMemory: false,
    isolated: false,
    capturesMemory: false,
    hardwareVirtualisation: false,
    egress: 'open',
    maxVcpus: availableParallelism(),
  };
  readonly #options: ProcessOptions;

  constructor(options: ProcessOptions) {
    this.#options = options;
  }

  async compatibility(image: GuestImage): Promise<Compatibility> {
    return {
      hypervisor: 'process',
      hypervisorVersion: process.version,
      machine: 'host',
      cpu: arch(),
      imageDigest: image.digest,
    };
  }

  async boot(request: BootRequest, signal?: AbortSignal): Promise<Machine> {
    // A marker: there is no guest memory to map.
    await writeFile(request.pagesPath, '', { flag: 'wx', mode: 0o600 });
    const rootDir = join(request.runDir, 'root');
    await mkdir(rootDir, { mode: 0o700 });
    return this.#start(request, rootDir, 'hypervisor-failed', signal);
  }

  async restore(request: RestoreRequest, signal?: AbortSignal): Promise<Machine> {
    if (request.delta) throw new ThawError('not-implemented', 'a host process has no memory pages to write');
    let stageStartMs = performance.now();
    const endStage = (stage: string) => {
      const nowMs = performance.now();
      request.onStage?.(stage, nowMs - stageStartMs);
      stageStartMs = nowMs;
    };
    const rootDir = join(request.runDir, 'root');
    await layRoot(request.from, rootDir);
    endStage('disk');
    const machine = await this.#start(request, rootDir, 'restore-failed', signal, () => endStage('spawn'));
    endStage('resume');
    return machine;
  }

  async #start(
    request: BootRequest | RestoreRequest,
    rootDir: string,
    failure: 'hypervisor-failed' | 'restore-failed',
    signal?: AbortSignal,
    onSpawned: () => void = () => {},
  ): Promise<Machine> {
    const { vmId, runDir } = request;
    const controlPath = join(runDir, 'control.sock');
    const { agentProgram, nodeProgram = process.execPath } = this.#options;
    const env = {
      PATH: process.env.PATH,
      THAW_AGENT_MODE: 'process',
      THAW_AGENT_CONTROL: controlPath,
      THAW_AGENT_ROOT: rootDir,
      THAW_AGENT_PORT: '0',
    };
    const child = await startChild(nodeProgram, [agentProgram], { cwd: runDir, env });
    const machine = new ProcessMachine(vmId, child, runDir, rootDir);
    try {
      await recordProcess(runDir, child.pid, agentProgram, { leadsGroup: true });
      onSpawned();
      machine.control = await controlOf(child, controlPath, failure, signal);
      return machine;
    } catch (error) {
      await machine.destroy();
      throw error;
    }
  }
}

async function layRoot(from: CapturedFiles, rootDir: string): Promise<void> {
  const files = rootFilesOf(rootDir);
  const running = parseRunningState(await readFile(from.devicesPath, 'utf8'));
  await cp(from.diskPath, rootDir, { recursive: true, verbatimSymlinks: true, preserveTimestamps: true });
  await writeFile(files.nonce, running.nonce);
  if (running.runner !== null) await writeFile(files.runner, running.runner);
}

/** Connects as soon as the agent listens, which it does last: with its remembered program running. */
async function controlOf(
  child: Child,
  path: string,
  failure: 'hypervisor-failed' | 'restore-failed',
  signal: AbortSignal | undefined,
): Promise<Socket> {
  const deadlineMs = performance.now() + startTimeoutMs;
  let ended = '';
  void child.exited.then((exit) => {
    ended = `the agent ended with ${exit.signal ?? `exit code ${exit.exitCode}`}: ${exit.stderrTail.trim()}`;
  });
  for (;;) {
    signal?.throwIfAborted();
    if (ended !== '') throw new ThawError(failure, ended);
    if (performance.now() > deadlineMs)
      throw new ThawError(failure, `the agent opened no control channel within ${startTimeoutMs} ms`);
    const socket = await connected(path);
    if (socket) return socket;
    await delay(probeMs);
  }
}

function connected(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => resolve(socket.on('error', () => {})));
    socket.once('error', () => resolve(undefined));
  });
}
