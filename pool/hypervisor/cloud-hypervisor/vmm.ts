// Owns one Cloud Hypervisor process from its start in a jail to its end: API, events, network slot, control group.
// Refuses to own the VM in it (cloud-hypervisor-machine.ts).
// Invariant: end() leaves no process, slot, group; a process whose version is not known to work is never used.
import { mkdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import type { Readable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';
import type { Cgroup, CgroupLimits, Cgroups } from '../../host/cgroups.ts';
import { type Child, startChild } from '../../host/child.ts';
import { unmountFile } from '../../host/file-mounts.ts';
import type { NetworkSlot, NetworkSlots } from '../../host/network-slots.ts';
import { recordProcess } from '../../host/process-table.ts';
import type { MachineExit } from '../hypervisor.ts';
import { ApiClient } from './api-client.ts';
import { readEvents } from './event-monitor.ts';
import { typedFailure } from './failures.ts';
import type { Jail } from './jail.ts';
import { refusedVersion } from './versions.ts';
import { names } from './vm-config.ts';

const eventsFd = 3;
const startTimeoutMs = 20_000;
const connectRetryMs = 5;
const endTimeoutMs = 10_000;
const directoryName = 'vmm';
const programName = 'cloud-hypervisor';
/** Of the programs that confine the VMM; it needs no environment itself. */
const systemPath = '/usr/sbin:/usr/bin:/sbin:/bin';

/** What all VMMs of one driver share. */
export interface VmmHost {
  jail: Jail;
  slots: NetworkSlots;
  cgroups: Cgroups | undefined;
}

export class Vmm {
  readonly pid: number;
  readonly exited: Promise<MachineExit>;
  readonly slot: NetworkSlot;
  readonly #host: VmmHost;
  readonly #child: Child;
  #dir: string;
  #api: ApiClient;
  #cgroup: Cgroup | undefined;
  #mounted: string | undefined;
  #ending: Promise<void> | undefined;

  private constructor(host: VmmHost, slot: NetworkSlot, dir: string, child: Child) {
    this.#host = host;
    this.slot = slot;
    this.#dir = dir;
    this.#child = child;
    this.pid = child.pid;
    this.exited = child.exited;
    this.#api = this.#connect();
    // A guest that resets would come back as another one, booted and not restored: its VMM ends instead.
    readEvents(child.process.stdio[eventsFd] as Readable, ({ source, event }) => {
      if (source === 'vm' && event === 'rebooting') this.kill();
    });
  }

  /** @param runDir gets the VMM's directory and the record of its process. */
  static async start(host: VmmHost, runDir: string): Promise<Vmm> {
    const slot = await host.slots.take();
    let vmm: Vmm | undefined;
    try {
      await mkdir(runDir, { recursive: true, mode: 0o700 });
      const dir = join(runDir, directoryName);
      await host.jail.prepare(dir, slot.uid);
      const args = ['--api-socket', `path=${names.api}`, '--event-monitor', `fd=${eventsFd}`];
      const [program, ...words] = host.jail.command(dir, slot, args);
      const child = await startChild(program!, words, {
        cwd: dir,
        env: { PATH: systemPath },
        extraStdio: ['pipe'],
      });
      vmm = new Vmm(host, slot, dir, child);
      await recordProcess(runDir, vmm.pid, programName);
      await vmm.#joinGroup(basename(runDir));
      await withDeadline('the start of Cloud Hypervisor', startTimeoutMs, vmm.#answering());
      return vmm;
    } catch (error) {
      if (vmm) await vmm.end();
      else host.slots.giveBack(slot);
      throw typedFailure(error, 'the start of Cloud Hypervisor', 'hypervisor-failed');
    }
  }

  get api(): ApiClient {
    return this.#api;
  }

  get dir(): string {
    return this.#dir;
  }

  /** Takes it, its directory and its record to the run directory of the VM it is to hold. */
  async moveTo(runDir: string, limits: CgroupLimits): Promise<void> {
    const spareDir = dirname(this.#dir);
    await recordProcess(runDir, this.pid, programName);
    const dir = join(runDir, directoryName);
    await rename(this.#dir, dir);
    if (spareDir !== runDir) await rm(spareDir, { recursive: true, force: true });
    this.#dir = dir;
    void this.#api.close();
    this.#api = this.#connect();
    await this.#cgroup?.limit(limits);
  }

  /** Without effect on a process that has ended. */
  kill(): void {
    this.#child.process.kill('SIGKILL');
  }

  /** Safe in every state and more than once. */
  end(): Promise<void> {
    this.#ending ??= this.#end();
    return this.#ending;
  }

  get hasEnded(): boolean {
    const { exitCode, signalCode } = this.#child.process;
    return exitCode !== null || signalCode !== null;
  }

  /** Its end may not have been told yet. */
  answers(): Promise<boolean> {
    return this.#api.ping().then(
      () => true,
      () => false,
    );
  }

  /** Lets the VMM read and write a file or directory in its jail. */
  give(path: string): Promise<void> {
    return this.#host.jail.give(path, this.slot.uid);
  }

  /** The reverse of `give`. */
  takeBack(path: string, mode: number): Promise<void> {
    return this.#host.jail.takeBack(path, mode);
  }

  /** Puts a file into the jail. */
  place(source: string, name: string): Promise<void> {
    return this.#host.jail.place(source, this.#dir, name);
  }

  /** Puts a file into the jail that this VMM may read and never write. */
  placeReadable(source: string, name: string): Promise<void> {
    return this.#host.jail.placeReadable(source, this.#dir, name);
  }

  /** Puts the page file into the jail, to be read; from another file system for as long as the VMM lives. */
  async placePages(source: string): Promise<void> {
    this.#mounted = await this.#host.jail.placePages(source, this.#dir, names.pages);
  }

  /** A file of this VMM by its name in the jail. */
  path(name: string): string {
    return join(this.#dir, name);
  }

  async #end(): Promise<void> {
    this.kill();
    // Whoever waits is told that it takes long; what it held is given back when it has ended all the same.
    const released = this.exited.then(() => this.#release());
    await withDeadline(`the end of Cloud Hypervisor ${this.pid}`, endTimeoutMs, released);
  }

  async #release(): Promise<void> {
    await this.#api.close();
    if (this.#mounted !== undefined) await unmountFile(this.#mounted);
    await this.#cgroup?.remove();
    this.#host.slots.giveBack(this.slot);
  }

  async #joinGroup(name: string): Promise<void> {
    this.#cgroup = await this.#host.cgroups?.create(name);
    await this.#cgroup?.add(this.pid);
  }

  #connect(): ApiClient {
    return new ApiClient(join(this.#dir, names.api), () => this.kill());
  }

  async #answering(): Promise<void> {
    for (;;) {
      const ping = await this.#api.ping().catch((error: NodeJS.ErrnoException) => {
        // Not there yet, or there and not listening yet.
        if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') return undefined;
        throw error;
      });
      const refusal = ping && refusedVersion(ping.version);
      if (refusal) throw new ThawError('incompatible', refusal);
      if (ping) return;
      if (this.hasEnded) throw endedEarly(await this.exited);
      await delay(connectRetryMs);
    }
  }
}

const endedEarly = ({ exitCode, signal, stderrTail }: MachineExit) =>
  new ThawError('hypervisor-failed', `Cloud Hypervisor ended (${signal ?? exitCode}): ${stderrTail.trim()}`);
