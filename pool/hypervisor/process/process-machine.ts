// Owns one agent running as a host process: its control channel, its capture as files, its end with all it started.
// Invariant: `destroy` leaves none of the agent's programs, however the agent itself ended.
import { readdir, readFile, readlink, rename, rm, writeFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';
import type { Child } from '../../host/child.ts';
import type { Address, CapturedFiles, Machine, MachineExit, PageDelta } from '../hypervisor.ts';
import { type OnStage, stopwatch } from '../stopwatch.ts';
import { type RunningState, rootFilesOf } from './root-files.ts';

/** The agent kills its programs and exits in the same turn; longer means that it hangs. */
const politeEndMs = 2_000;
const endTimeoutMs = 5_000;

export class ProcessMachine implements Machine {
  readonly vmId: string;
  readonly pid: number;
  readonly exited: Promise<MachineExit>;
  /** Set once by the driver when the agent listens. */
  control: Socket | undefined;
  readonly #child: Child;
  readonly #runDir: string;
  readonly #rootDir: string;
  #controlTaken = false;

  constructor(vmId: string, child: Child, runDir: string, rootDir: string) {
    this.vmId = vmId;
    this.pid = child.pid;
    this.exited = child.exited;
    this.#child = child;
    this.#runDir = runDir;
    this.#rootDir = rootDir;
  }

  async openControl(): Promise<Duplex> {
    if (this.#controlTaken) throw new ThawError('conflict', 'the control channel of this VM is already open');
    this.#controlTaken = true;
    return this.control as Socket;
  }

  /** The agent says real ports of the host, and whatever its programs listen on is one too. */
  async addressOf(guestPort: number): Promise<Address> {
    return { host: '127.0.0.1', port: guestPort };
  }

  async captureInPlace(target: Omit<CapturedFiles, 'pagesPath'>, onStage?: OnStage): Promise<void> {
    const timed = stopwatch(onStage);
    await timed('pause', () => this.#end());
    await timed('state', async () =>
      writeFile(target.devicesPath, JSON.stringify(await this.#takeRunningState()), {
        flush: true,
        mode: 0o600,
      }),
    );
    await timed('disk', () => rename(this.#rootDir, target.diskPath));
  }

  async #takeRunningState(): Promise<RunningState> {
    const files = rootFilesOf(this.#rootDir);
    const state = {
      nonce: (await readFile(files.nonce, 'utf8')).trim(),
      runner: await readFile(files.runner, 'utf8').catch(nullWhenAbsent),
    };
    await Promise.all(Object.values(files).map((path) => rm(path, { force: true })));
    return state;
  }

  async captureClone(): Promise<PageDelta> {
    throw new ThawError('not-implemented', 'a host process cannot be captured while it runs');
  }

  async resume(): Promise<void> {}

  async destroy(): Promise<void> {
    await this.#end();
    this.control?.destroy();
  }

  async #end(): Promise<void> {
    // Asked first: only the agent knows all of its programs. Each leads a process group of its own.
    this.#child.process.kill('SIGTERM');
    await withDeadline('the end of the agent', politeEndMs, this.exited).catch(() =>
      this.#child.process.kill('SIGKILL'),
    );
    await withDeadline(`the end of the agent ${this.pid}`, endTimeoutMs, this.exited);
    await killWorkersIn(this.#runDir);
  }
}

const nullWhenAbsent = (error: NodeJS.ErrnoException): null => {
  if (error.code === 'ENOENT') return null;
  throw error;
};

/** Ends what an agent that was killed could not end itself: its programs start in directories below its root. */
async function killWorkersIn(dir: string): Promise<void> {
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const cwd = await readlink(`/proc/${name}/cwd`).catch(() => '');
    if (cwd.startsWith(`${dir}/`)) kill(Number(name));
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
