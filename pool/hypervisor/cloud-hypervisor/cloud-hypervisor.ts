// Owns the Cloud Hypervisor driver: boots a template with its memory on a shared file, restores clones that map it
// privately by rewriting the snapshot's configuration. Stock binary, its HTTP API, nothing patched.
// Refuses to own the choice of hypervisor (choose.ts). Invariant: a restore copies no guest memory and starts no program.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, open, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { ThawError } from '../../../shared/errors.ts';
import type { Log } from '../../../shared/log.ts';
import { Cgroups } from '../../host/cgroups.ts';
import { NamespaceSlots, type NetworkSlots } from '../../host/network-slots.ts';
import type { Paths } from '../../host/paths.ts';
import { cloneDisk } from '../../host/sparse-file.ts';
import type {
  BootRequest,
  Capabilities,
  Compatibility,
  GuestImage,
  Hypervisor,
  Machine,
  RestoreRequest,
} from '../hypervisor.ts';
import { CloudHypervisorMachine } from './cloud-hypervisor-machine.ts';
import { checkSizes, type DeviceState, readDevices, withDelta, writeSnapshotDir } from './device-state.ts';
import { typedFailure } from './failures.ts';
import { Jail } from './jail.ts';
import { whyNoLandlock } from './landlock.ts';
import { SpareVmms } from './spare-vmms.ts';
import { parseVersion, refusedVersion } from './versions.ts';
import { bootConfig, cloneConfig, machineVersion, names } from './vm-config.ts';
import type { Vmm, VmmHost } from './vmm.ts';

const run = promisify(execFile);
/** A guest under emulation boots in tens of seconds. */
const bootCallTimeoutMs = 300_000;
const restoreCallTimeoutMs = 30_000;
const defaultSpares = 2;
const maxVcpus = 16;

export interface CloudHypervisorOptions {
  /** The binary; words before it, and network slots that are none, are for tests. */
  program: readonly string[];
  paths: Paths;
  log: Log;
  slots?: NetworkSlots;
  /** Processes kept ready. */
  spares?: number;
  /** Absent: where the kernel has what it takes. */
  landlock?: boolean;
  /** False for tests alone: no uid, root directory and control group of its own. */
  confine?: boolean;
}

export function createCloudHypervisor(options: CloudHypervisorOptions): CloudHypervisor {
  return new CloudHypervisor(options);
}

export class CloudHypervisor implements Hypervisor {
  readonly name = 'cloud-hypervisor';
  readonly capabilities: Capabilities = {
    copyOnWriteMemory: true,
    isolated: true,
    capturesMemory: true,
    hardwareVirtualisation: true,
    egress: 'by-address',
    maxVcpus,
  };
  readonly #options: CloudHypervisorOptions;
  readonly #slots: NetworkSlots;
  #version: Promise<string> | undefined;
  #hasLandlock: boolean | undefined;
  #host: Promise<VmmHost> | undefined;
  #spares: Promise<SpareVmms> | undefined;
  /** A snapshot's device state is read once: it never changes. */
  readonly #devices = new Map<string, Promise<DeviceState>>();

  constructor(options: CloudHypervisorOptions) {
    this.#options = options;
    const { paths, log } = options;
    this.#slots = options.slots ?? new NamespaceSlots({ recordsDir: paths.networkDir, log });
  }

  async compatibility(image: GuestImage): Promise<Compatibility> {
    this.#version ??= versionOf(this.#options.program);
    return {
      hypervisor: 'cloud-hypervisor',
      hypervisorVersion: await this.#version,
      machine: machineVersion,
      cpu: await hostCpu(),
      imageDigest: image.digest,
    };
  }

  async boot(request: BootRequest, signal?: AbortSignal): Promise<Machine> {
    const { image, shape, pagesPath } = request;
    await createSparse(pagesPath, shape.memoryMb);
    const spares = await this.#sparesOf();
    const vmm = await this.#take(request);
    try {
      signal?.throwIfAborted();
      await this.#placeShared(vmm, pagesPath);
      await this.#placeDisk(vmm, image, image.blankDiskPath);
      await vmm.place(image.vmlinuxPath, names.kernel);
      await vmm.place(image.initrdPath, names.initrd);
      const machine = await CloudHypervisorMachine.in(vmm, {
        vmId: request.vmId,
        sharedMemory: true,
        callTimeoutMs: bootCallTimeoutMs,
        onAnswered: () => spares.refill(),
      });
      await vmm.api.create(bootConfig(shape, { sharedMemory: true, landlock: this.#landlock }));
      await vmm.api.boot();
      return machine;
    } catch (error) {
      throw await this.#failed(vmm, error, 'boot', 'hypervisor-failed');
    }
  }

  async restore(request: RestoreRequest, signal?: AbortSignal): Promise<Machine> {
    const endStage = stages(request.onStage);
    const devices = await this.#devicesOf(request.from.devicesPath);
    await checkSizes(devices, request.from);
    endStage('check');
    const vmm = await this.#take(request);
    endStage('spawn');
    try {
      signal?.throwIfAborted();
      await this.#placeDisk(vmm, request.image, request.from.diskPath);
      endStage('disk');
      return await this.#load(vmm, request, devices, endStage);
    } catch (error) {
      throw await this.#failed(vmm, error, 'restore', 'restore-failed');
    }
  }

  /** Starts the processes that restores will find ready. Resolves when nothing goes on in the background. */
  async warm(): Promise<void> {
    await (await this.#sparesOf()).filled();
    await this.#slots.rested();
  }

  /** Ends what is held ready; VMs in use are their holders'. */
  async close(): Promise<void> {
    await (await this.#spares)?.close();
    await this.#slots.close();
  }

  async #load(
    vmm: Vmm,
    request: RestoreRequest,
    devices: DeviceState,
    endStage: (stage: string) => void,
  ): Promise<Machine> {
    const { from, delta } = request;
    const sharedMemory = request.memory === 'shared';
    if (sharedMemory) await this.#placeShared(vmm, from.pagesPath);
    else await vmm.placePages(from.pagesPath);
    const config = cloneConfig(devices.config, { sharedMemory, landlock: this.#landlock });
    const dir = vmm.path(names.from);
    const state = delta ? withDelta(devices.state, delta.runs) : devices.state;
    await writeSnapshotDir(dir, config, state);
    await vmm.give(dir);
    if (delta) await vmm.placeReadable(delta.path, `${names.from}/${names.memory}`);
    const { vmId } = request;
    const spares = await this.#sparesOf();
    const machine = await CloudHypervisorMachine.in(vmm, {
      ...{ vmId, sharedMemory, callTimeoutMs: restoreCallTimeoutMs },
      onAnswered: () => spares.refill(),
    });
    endStage('load');
    const source = `file://${names.from}`;
    await vmm.api.restore({ source_url: source, memory_restore_mode: 'Copy', resume: true });
    endStage('resume');
    return machine;
  }

  async #take(request: BootRequest | RestoreRequest): Promise<Vmm> {
    const spares = await this.#sparesOf();
    const vmm = await spares.take();
    // Whatever became of it.
    void vmm.exited.then(() => spares.refill());
    try {
      await vmm.moveTo(request.runDir, request.shape);
      return vmm;
    } catch (error) {
      await vmm.end();
      throw error;
    }
  }

  /** A page file of this VM alone, into which its guest writes. */
  async #placeShared(vmm: Vmm, pagesPath: string): Promise<void> {
    await vmm.place(pagesPath, names.pages);
    // A copy of a template's, which nobody may write.
    await chmod(vmm.path(names.pages), 0o600);
    await vmm.give(vmm.path(names.pages));
  }

  async #placeDisk(vmm: Vmm, image: GuestImage, diskPath: string): Promise<void> {
    await vmm.placeReadable(image.rootPath, names.root);
    await cloneDisk(diskPath, vmm.path(names.disk));
    await vmm.give(vmm.path(names.disk));
  }

  #sparesOf(): Promise<SpareVmms> {
    this.#spares ??= (async () => {
      const { paths, log, spares = defaultSpares } = this.#options;
      this.#host ??= this.#openHost();
      const dirOf = (vmId: string) => paths.vmDir(vmId);
      return new SpareVmms({ host: await this.#host, dirOf, wanted: spares, log });
    })();
    this.#spares.catch(() => {
      this.#spares = undefined;
      this.#host = undefined;
    });
    return this.#spares;
  }

  async #openHost(): Promise<VmmHost> {
    const { program, paths, confine = true } = this.#options;
    return {
      jail: await Jail.open(program, paths.jailDir, confine),
      slots: this.#slots,
      cgroups: confine ? await Cgroups.open(paths.dataDir) : undefined,
    };
  }

  #devicesOf(path: string): Promise<DeviceState> {
    const known = this.#devices.get(path) ?? readDevices(path);
    this.#devices.set(path, known);
    known.catch(() => this.#devices.delete(path));
    return known;
  }

  get #landlock(): boolean {
    const { landlock, confine = true } = this.#options;
    this.#hasLandlock ??= landlock ?? (confine && whyNoLandlock() === undefined);
    return this.#hasLandlock;
  }

  async #failed(
    vmm: Vmm,
    error: unknown,
    during: string,
    code: 'restore-failed' | 'hypervisor-failed',
  ): Promise<ThawError> {
    await vmm.end();
    const { stderrTail } = await vmm.exited;
    const words = stderrTail.trim().split('\n').at(-1);
    return typedFailure(error, words ? `${during}: ${words}` : during, code);
  }
}

function stages(onStage: ((stage: string, elapsedMs: number) => void) | undefined) {
  let startMs = performance.now();
  return (stage: string) => {
    const nowMs = performance.now();
    onStage?.(stage, nowMs - startMs);
    startMs = nowMs;
  };
}

async function createSparse(path: string, sizeMb: number): Promise<void> {
  await using file = await open(path, 'wx', 0o600);
  await file.truncate(sizeMb * 1024 * 1024);
}

/** @throws ThawError `missing-package` | `incompatible`. */
export async function versionOf(program: readonly string[]): Promise<string> {
  const [file, ...words] = program;
  const { stdout } = await run(file!, [...words, '--version']).catch((error: Error) => {
    throw new ThawError(
      'missing-package',
      `Cloud Hypervisor cannot be run (${error.message}); THAW_CLOUD_HYPERVISOR names its binary`,
    );
  });
  const version = parseVersion(stdout);
  const refusal = version === undefined ? `${file} is not Cloud Hypervisor` : refusedVersion(version);
  if (refusal) throw new ThawError('incompatible', refusal);
  return version!;
}

/** The guest sees the host's own CPU: its model and every feature of it. */
async function hostCpu(): Promise<string> {
  const text = await readFile('/proc/cpuinfo', 'utf8');
  const model = /^model name\s*: (.*)$/m.exec(text)?.[1] ?? 'unknown';
  const flags = /^flags\s*: (.*)$/m.exec(text)?.[1] ?? '';
  return `${model}:${createHash('sha256').update(flags).digest('hex').slice(0, 12)}`;
}
