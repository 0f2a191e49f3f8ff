// Owns the QEMU driver: boots a template with its memory on a shared file, restores clones that map it privately.
// Refuses to own the guest's words and the choice between TCG and KVM (pool/hypervisor/choose.ts).
// Invariant: a restore copies no guest memory and spawns nothing but QEMU itself.
import { execFile } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Cleanup } from '../../../shared/cleanup.ts';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';
import type { Log } from '../../../shared/log.ts';
import { type Child, startChild } from '../../host/child.ts';
import type { NetworkSlots } from '../../host/network-slots.ts';
import { recordProcess } from '../../host/process-table.ts';
import { pasteIntoProcess } from '../guest-memory/delta-paste.ts';
import type {
  BootRequest,
  Capabilities,
  Compatibility,
  GuestImage,
  Hypervisor,
  Machine,
  PageDelta,
  RestoreRequest,
} from '../hypervisor.ts';
import {
  type Accelerator,
  cpuModel,
  devicesInput,
  machineType,
  type QemuCommand,
  qemuArgs,
} from './command-line.ts';
import { createOverlay } from './overlay.ts';
import { QemuMachine } from './qemu-machine.ts';

const run = promisify(execFile);
const program = 'qemu-system-x86_64';
/** Uids for VMMs when Thaw is root: above what distributions and container runtimes hand out. */
const firstVmmUid = 0x6000_0000;
const vmmUids = 0x1000_0000;
const deltaTimeoutMs = 30_000;

export interface QemuOptions {
  accelerator: Accelerator;
  log: Log;
  /** For VMs that may get a way out. Absent: none does. */
  slots?: NetworkSlots | undefined;
}

export function createQemuHypervisor(options: QemuOptions): Hypervisor {
  return new QemuHypervisor(options);
}

class QemuHypervisor implements Hypervisor {
  readonly name = 'qemu';
  readonly capabilities: Capabilities;
  readonly #options: QemuOptions;
  #version: Promise<string> | undefined;

  constructor(options: QemuOptions) {
    this.#options = options;
    this.capabilities = {
      copyOnWriteMemory: true,
      isolated: true,
      capturesMemory: true,
      hardwareVirtualisation: options.accelerator === 'kvm',
      egress: options.slots ? 'by-address' : 'closed',
      maxVcpus: 16,
    };
  }

  async compatibility(image: GuestImage): Promise<Compatibility> {
    this.#version ??= qemuVersion();
    const { accelerator } = this.#options;
    return {
      hypervisor: `qemu-${accelerator}`,
      hypervisorVersion: await this.#version,
      machine: machineType,
      // Under KVM the guest sees the host's own CPU; under TCG QEMU's version decides what `max` is.
      cpu: accelerator === 'kvm' ? `${cpuModel}:${await hostCpuModel()}` : cpuModel,
      imageDigest: image.digest,
    };
  }

  async boot(request: BootRequest, signal?: AbortSignal): Promise<Machine> {
    await createSparse(request.pagesPath, request.shape.memoryMb);
    const diskPath = join(request.runDir, 'disk');
    await createOverlay(diskPath, request.image.blankDiskPath, 'raw');
    const serialLogPath = join(request.runDir, 'serial.log');
    const { pagesPath } = request;
    const machine = await this.#start(request, {
      pagesPath,
      sharedMemory: true,
      diskPath,
      serialLogPath,
      mode: 'boot',
    });
    signal?.throwIfAborted();
    return machine;
  }

  async restore(request: RestoreRequest, signal?: AbortSignal): Promise<Machine> {
    let stageStartMs = performance.now();
    const endStage = (stage: string) => {
      const nowMs = performance.now();
      request.onStage?.(stage, nowMs - stageStartMs);
      stageStartMs = nowMs;
    };
    const diskPath = join(request.runDir, 'disk');
    await createOverlay(diskPath, request.from.diskPath, 'qcow2');
    endStage('disk');
    const sharedMemory = request.memory === 'shared';
    const { pagesPath, devicesPath } = request.from;
    const mode = request.delta ? 'restore-later' : 'restore';
    const machine = await this.#start(request, { pagesPath, sharedMemory, diskPath, mode }, devicesPath);
    endStage('spawn');
    try {
      signal?.throwIfAborted();
      if (request.delta) {
        await layDelta(machine, pagesPath, request.delta);
        endStage('delta');
      }
      const resumed = machine.qmp.event('RESUME');
      // `cont` while the state still loads is remembered by QEMU and takes effect when it has loaded.
      await Promise.all([resumed, machine.qmp.execute('cont')]);
      endStage('resume');
      return machine;
    } catch (error) {
      await machine.destroy();
      const { stderrTail } = await machine.exited;
      throw new ThawError('restore-failed', `QEMU did not resume: ${stderrTail.trim() || String(error)}`, {
        cause: error,
      });
    }
  }

  async #start(
    request: BootRequest | RestoreRequest,
    command: Omit<QemuCommand, 'accelerator' | 'shape' | 'image' | 'runAs'>,
    devicesInPath?: string,
  ): Promise<QemuMachine> {
    await using cleanup = new Cleanup();
    await using filesOnly = new Cleanup();
    const openFor = async (path: string, flags: string) => {
      const file = await open(path, flags, 0o600);
      filesOnly.defer(path, () => file.close());
      return file.fd;
    };
    const { slots } = this.#options;
    const mayReachOut = 'mayReachOut' in request && request.mayReachOut === true;
    const slot = mayReachOut ? await slots?.take() : undefined;
    if (slot) cleanup.defer('network slot', () => slots!.giveBack(slot));
    const devicesPath = join(request.runDir, 'devices');
    const devicesIn = await openFor(devicesInPath ?? '/dev/null', 'r');
    const devicesOut = await openFor(devicesPath, 'w');
    const args = qemuArgs({
      ...command,
      accelerator: this.#options.accelerator,
      shape: request.shape,
      image: request.image,
      ...(slot ? { slotAddress: slot.address } : {}),
      ...(process.getuid?.() === 0 ? { runAs: vmmUidOf(request.vmId) } : {}),
    });
    const child = await spawnQemu(
      [...(slot?.enter ?? []), program, ...args],
      ['pipe', 'pipe', devicesIn, devicesOut],
    );
    cleanup.defer('QEMU', () => child.process.kill('SIGKILL'));
    await recordProcess(request.runDir, child.pid, program);
    const { diskPath, pagesPath, sharedMemory } = command;
    const files = { diskPath, devicesPath, pagesPath, sharedMemory };
    const machine = new QemuMachine(request.vmId, child, files, slot);
    cleanup.disarm();
    if (slot) void machine.exited.then(() => slots!.giveBack(slot));
    return machine;
  }
}

/** Before the state: devices look into the guest's memory as they load. */
async function layDelta(machine: QemuMachine, pagesPath: string, delta: PageDelta): Promise<void> {
  // An answer means that the machine is made and its memory mapped.
  await machine.qmp.execute('query-status');
  await withDeadline('the changed pages', deltaTimeoutMs, pasteIntoProcess(machine.pid, pagesPath, delta));
  await machine.qmp.execute('migrate-incoming', { uri: devicesInput });
}

async function spawnQemu([first, ...args]: string[], extraStdio: ('pipe' | number)[]): Promise<Child> {
  try {
    return await startChild(first!, args, {
      env: { PATH: process.env.PATH, MALLOC_ARENA_MAX: '1' },
      extraStdio,
    });
  } catch (error) {
    throw (error as NodeJS.ErrnoException).code === 'ENOENT' ? missingQemu() : error;
  }
}

const missingQemu = () =>
  new ThawError('missing-package', `${program} is not installed: apt-get install qemu-system-x86`);

/** One uid per VM: a guest that breaks out of its VMM finds no other VMM's process or file it may touch. */
function vmmUidOf(vmId: string): number {
  return firstVmmUid + (Number.parseInt(vmId.slice(3), 16) % vmmUids);
}

async function createSparse(path: string, sizeMb: number): Promise<void> {
  await using file = await open(path, 'wx', 0o600);
  await file.truncate(sizeMb * 1024 * 1024);
}

async function qemuVersion(): Promise<string> {
  try {
    const { stdout } = await run(program, ['--version']);
    return /version (.+)/.exec(stdout)?.[1]?.trim() ?? stdout.trim();
  } catch {
    throw missingQemu();
  }
}

async function hostCpuModel(): Promise<string> {
  return /^model name\s*: (.*)$/m.exec(await readFile('/proc/cpuinfo', 'utf8'))?.[1] ?? 'unknown';
}
