// Owns one running QEMU process: its QMP, control channel, forwarded ports, capture and end.
// Invariant: destroy() leaves no process; everything else about the VM lies in its run directory.
import { open, rename } from 'node:fs/promises';
import type { Duplex } from 'node:stream';
import { withDeadline } from '../../../shared/deadline.ts';
import type { EgressRules } from '../../../shared/egress.ts';
import { ThawError } from '../../../shared/errors.ts';
import type { Child } from '../../host/child.ts';
import type { NetworkSlot } from '../../host/network-slots.ts';
import type {
  Address,
  CapturedFiles,
  CloneCaptureOptions,
  CloneCaptureTarget,
  Machine,
  MachineExit,
  PageDelta,
} from '../hypervisor.ts';
import { type OnStage, stopwatch } from '../stopwatch.ts';
import { captureClone } from './clone-capture.ts';
import { devicesOutput, forwardRule, inherited, loopback } from './command-line.ts';
import { Qmp } from './qmp.ts';

const endTimeoutMs = 5_000;

/** The files of one QEMU process: its memory, and where it writes its disk and, when captured, its device state. */
export interface QemuFiles extends CapturedFiles {
  sharedMemory: boolean;
}

export class QemuMachine implements Machine {
  readonly vmId: string;
  readonly pid: number;
  readonly exited: Promise<MachineExit>;
  readonly qmp: Qmp;
  readonly #child: Child;
  readonly #files: QemuFiles;
  /** Absent without a slot: then there is no way out to be opened. */
  readonly setEgress?: (rules: EgressRules) => Promise<void>;
  readonly #host: string;
  readonly #addresses = new Map<number, Promise<Address>>();
  #controlTaken = false;
  #capturing = false;

  constructor(vmId: string, child: Child, files: QemuFiles, slot?: NetworkSlot) {
    this.vmId = vmId;
    this.pid = child.pid;
    this.exited = child.exited;
    this.qmp = new Qmp(child.process.stdio[inherited.qmp] as Duplex);
    this.#child = child;
    this.#files = files;
    this.#host = slot?.address ?? loopback;
    if (slot) this.setEgress = (rules) => slot.setEgress(rules);
  }

  async openControl(): Promise<Duplex> {
    if (this.#controlTaken) throw new ThawError('conflict', 'the control channel of this VM is already open');
    this.#controlTaken = true;
    return this.#child.process.stdio[inherited.control] as Duplex;
  }

  addressOf(guestPort: number): Promise<Address> {
    const known = this.#addresses.get(guestPort);
    if (known) return known;
    const found = this.#forwardedPort(guestPort).then((port) => ({ host: this.#host, port }));
    this.#addresses.set(guestPort, found);
    found.catch(() => this.#addresses.delete(guestPort));
    return found;
  }

  async #forwardedPort(guestPort: number): Promise<number> {
    const existing = parseForwards(await this.#monitor('info usernet')).get(guestPort);
    if (existing !== undefined) return existing;
    const refusal = await this.#monitor(`hostfwd_add n0 ${forwardRule(guestPort, this.#host)}`);
    const added = parseForwards(await this.#monitor('info usernet')).get(guestPort);
    if (added === undefined)
      throw new ThawError('hypervisor-failed', `hostfwd_add ${guestPort}: ${refusal.trim()}`);
    return added;
  }

  async #monitor(line: string): Promise<string> {
    return String(await this.qmp.execute('human-monitor-command', { 'command-line': line }));
  }

  async captureInPlace(target: Omit<CapturedFiles, 'pagesPath'>, onStage?: OnStage): Promise<void> {
    const timed = stopwatch(onStage);
    await timed('pause', () => this.qmp.execute('stop'));
    await timed('state', () =>
      this.qmp.execute('xen-save-devices-state', { filename: devicesOutput, live: false }),
    );
    // `quit`, not a kill: QEMU writes its disk metadata back on the way out, then the files are the snapshot's.
    await timed('disk', async () => {
      await this.qmp.execute('quit');
      await withDeadline(`the end of QEMU ${this.pid}`, endTimeoutMs, this.exited);
      await moveDurably(this.#files.diskPath, target.diskPath);
      await moveDurably(this.#files.devicesPath, target.devicesPath);
    });
  }

  async captureClone(target: CloneCaptureTarget, options: CloneCaptureOptions): Promise<PageDelta> {
    if (this.#files.sharedMemory)
      throw new ThawError('conflict', 'this VM writes into its page file: it is captured in place');
    if (this.#capturing) throw new ThawError('conflict', 'this VM is being captured');
    this.#capturing = true;
    try {
      return await captureClone({ pid: this.pid, qmp: this.qmp, files: this.#files }, target, options);
    } finally {
      this.#capturing = false;
    }
  }

  async resume(): Promise<void> {
    await this.qmp.execute('cont');
  }

  async destroy(): Promise<void> {
    this.#child.process.kill('SIGKILL');
    await withDeadline(`the end of QEMU ${this.pid}`, endTimeoutMs, this.exited);
  }
}

async function moveDurably(from: string, to: string): Promise<void> {
  await using file = await open(from, 'r');
  await file.sync();
  await rename(from, to);
}

/** Guest port → host port, from `info usernet`'s TCP[HOST_FORWARD] rows. */
export function parseForwards(text: string): Map<number, number> {
  const forwards = new Map<number, number>();
  for (const [, hostPort, guestPort] of text.matchAll(/HOST_FORWARD\]\s+\d+\s+[\d.]+\s+(\d+)\s+\S+\s+(\d+)/g))
    forwards.set(Number(guestPort), Number(hostPort));
  return forwards;
}
