// Owns one VM in a Cloud Hypervisor process: its channel, addresses, captures and end.
// Refuses to own how its process came to be (vmm.ts) and how it was restored (cloud-hypervisor.ts).
// Invariant: a capture of a running clone that fails leaves it running and no file behind.
import { mkdir, open, rename, rm } from 'node:fs/promises';
import type { Duplex } from 'node:stream';
import { controlVsockPort } from '../../../shared/agent-protocol.ts';
import { Cleanup } from '../../../shared/cleanup.ts';
import type { EgressRules } from '../../../shared/egress.ts';
import { ThawError } from '../../../shared/errors.ts';
import { cloneDisk } from '../../host/sparse-file.ts';
import { PageCapture } from '../guest-memory/page-capture.ts';
import type {
  Address,
  CapturedFiles,
  CloneCaptureOptions,
  CloneCaptureTarget,
  Machine,
  MachineExit,
  PageDelta,
} from '../hypervisor.ts';
import { type OnStage, stopwatch, type Timed } from '../stopwatch.ts';
import { type DeviceState, readSnapshotDir, writeDevices } from './device-state.ts';
import { isStateOnlySnapshot, typedFailure } from './failures.ts';
import { GuestChannel } from './guest-channel.ts';
import { names } from './vm-config.ts';
import type { Vmm } from './vmm.ts';

export interface MachineFacts {
  vmId: string;
  sharedMemory: boolean;
  /** How long the guest may take to call: a boot is longer than a restore. */
  callTimeoutMs: number;
  /** What was put off for its restore may begin. */
  onAnswered: () => void;
}

export class CloudHypervisorMachine implements Machine {
  readonly vmId: string;
  readonly pid: number;
  readonly exited: Promise<MachineExit>;
  readonly #vmm: Vmm;
  readonly #channel: GuestChannel;
  readonly #sharedMemory: boolean;
  readonly #callTimeoutMs: number;
  readonly #onAnswered: () => void;
  #controlTaken = false;
  #capturing = false;

  private constructor(vmm: Vmm, channel: GuestChannel, facts: MachineFacts) {
    this.vmId = facts.vmId;
    this.pid = vmm.pid;
    this.exited = vmm.exited;
    this.#vmm = vmm;
    this.#channel = channel;
    this.#sharedMemory = facts.sharedMemory;
    this.#callTimeoutMs = facts.callTimeoutMs;
    this.#onAnswered = facts.onAnswered;
    // Whoever ends the VMM, also before this machine was handed out.
    void vmm.exited.then(() => channel.close());
  }

  /** Before the guest runs. */
  static async in(vmm: Vmm, facts: MachineFacts): Promise<CloudHypervisorMachine> {
    const channel = await GuestChannel.listen(vmm.path(`${names.vsock}_${controlVsockPort}`));
    return new CloudHypervisorMachine(vmm, channel, facts);
  }

  async openControl(): Promise<Duplex> {
    if (this.#controlTaken) throw new ThawError('conflict', 'the control channel of this VM is already open');
    this.#controlTaken = true;
    return this.#channel.connection(this.#callTimeoutMs, this.exited);
  }

  answered(): void {
    this.#onAnswered();
  }

  async addressOf(guestPort: number): Promise<Address> {
    return { host: this.#vmm.slot.address, port: guestPort };
  }

  setEgress(rules: EgressRules): Promise<void> {
    return this.#vmm.slot.setEgress(rules);
  }

  async captureInPlace(target: Omit<CapturedFiles, 'pagesPath'>, onStage?: OnStage): Promise<void> {
    const timed = stopwatch(onStage);
    try {
      await timed('pause', () => this.#vmm.api.pause());
      // The memory is a file that is mapped shared: Cloud Hypervisor leaves it out by itself.
      const devices = await timed('state', async () => {
        await this.#saveState();
        return this.#readState();
      });
      await timed('disk', async () => {
        await writeDevices(target.devicesPath, devices);
        // The page file must not change again.
        await this.destroy();
        await this.#handOver(target.diskPath);
      });
    } catch (error) {
      throw typedFailure(error, 'capture', 'hypervisor-failed');
    }
  }

  async captureClone(target: CloneCaptureTarget, options: CloneCaptureOptions): Promise<PageDelta> {
    if (this.#sharedMemory)
      throw new ThawError('conflict', 'this VM writes into its page file: it is captured in place');
    if (this.#capturing) throw new ThawError('conflict', 'this VM is being captured');
    this.#capturing = true;
    await using undo = new Cleanup();
    for (const path of [target.deltaPath, target.devicesPath, target.diskPath])
      undo.defer(path, () => rm(path, { force: true }));
    try {
      const delta = await this.#capture(target, options);
      undo.disarm();
      return delta;
    } catch (error) {
      throw typedFailure(error, 'capture', 'hypervisor-failed');
    } finally {
      this.#capturing = false;
    }
  }

  async #capture(target: CloneCaptureTarget, options: CloneCaptureOptions): Promise<PageDelta> {
    await using pages = await PageCapture.prepare(this.pid, this.#vmm.path(names.pages));
    await using delta = await open(target.deltaPath, 'wx', 0o600);
    const timed = stopwatch(options.onStage);
    await options.beforePause?.();
    const devices = await this.#paused(options.resume, timed, async () => {
      const saved = await timed('state', () => this.#stateOnly());
      await timed('scan', () => pages.scan());
      await timed('copy', () => pages.copy(delta));
      await timed('disk', () => cloneDisk(this.#vmm.path(names.disk), target.diskPath));
      return saved;
    });
    await timed('write', async () => {
      await Promise.all([pages.write(), writeDevices(target.devicesPath, devices)]);
      await delta.sync();
    });
    return pages.delta(target.deltaPath);
  }

  async resume(): Promise<void> {
    await this.#vmm.api.resume();
  }

  async destroy(): Promise<void> {
    this.#channel.close();
    await this.#vmm.end();
  }

  async #paused<T>(resumeAfter: boolean, timed: Timed, work: () => Promise<T>): Promise<T> {
    await timed('pause', () => this.#vmm.api.pause());
    try {
      const result = await work();
      if (resumeAfter) await timed('resume', () => this.#vmm.api.resume());
      return result;
    } catch (error) {
      await this.#vmm.api.resume().catch(() => {});
      throw error;
    }
  }

  /**
   * Cloud Hypervisor writes a clone's whole memory after its state, unless the file for it is there already: then it
   * stops, with both state files written and the VM as it was.
   */
  async #stateOnly(): Promise<DeviceState> {
    try {
      await this.#saveState([names.memory]);
    } catch (error) {
      if (isStateOnlySnapshot(error)) return await this.#readState();
      throw error;
    }
    throw new ThawError('hypervisor-failed', 'the snapshot wrote memory that was not asked for');
  }

  async #saveState(present: readonly string[] = []): Promise<void> {
    const dir = this.#vmm.path(names.to);
    await rm(dir, { recursive: true, force: true });
    await mkdir(dir, { mode: 0o700 });
    for (const name of present) await (await open(`${dir}/${name}`, 'wx')).close();
    await this.#vmm.give(dir);
    await this.#vmm.api.snapshot(`file://${names.to}`);
  }

  #readState(): Promise<DeviceState> {
    return readSnapshotDir(this.#vmm.path(names.to), this.#vmm.path(names.disk));
  }

  /** The VMM has ended: what was its own is the snapshot's, and root's again. */
  async #handOver(diskPath: string): Promise<void> {
    const ours = this.#vmm.path(names.disk);
    await this.#vmm.takeBack(ours, 0o600);
    // Clones of other uids read it through a link in their jail; the directories it is named in are closed to them.
    await this.#vmm.takeBack(this.#vmm.path(names.pages), 0o444);
    await using disk = await open(ours, 'r');
    await disk.sync();
    await rename(ours, diskPath);
  }
}
