// Owns what tests of the driver start from where there is no KVM: the API's stand-in as the program, addresses of the
// loopback as network slots, a few bytes as the guest image. For tests only.
// Invariant: disposing leaves no process and no file.
import { mkdir, mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { newVmId } from '../../../shared/ids.ts';
import { silentLog } from '../../../shared/log.ts';
import type { NetworkSlot, NetworkSlots } from '../../host/network-slots.ts';
import { capturedFilesIn, type Paths, pathsOf } from '../../host/paths.ts';
import { readProcessRecord, readStartTime } from '../../host/process-table.ts';
import type { CapturedFiles, GuestImage, Machine, PageDelta } from '../hypervisor.ts';
import type { Refusals } from './api-stand-in.ts';
import { CloudHypervisor } from './cloud-hypervisor.ts';

const shape = { memoryMb: 16, vcpus: 1 };
let nextAddress = 1;

/** Every address of 127.0.0.0/8 is this machine's. */
export class LoopbackSlots implements NetworkSlots {
  readonly taken = new Set<NetworkSlot>();
  readonly environment: Record<string, string> = {};

  async take(): Promise<NetworkSlot> {
    const index = nextAddress++;
    const address = `127.77.${process.pid & 255}.${index}`;
    const variables = Object.entries({ THAW_STAND_IN_ADDRESS: address, ...this.environment });
    const enter = ['env', ...variables.map(([name, value]) => `${name}=${value}`)];
    const slot = { index, address, uid: 0, enter, setEgress: async () => {} };
    this.taken.add(slot);
    return slot;
  }

  giveBack(slot: NetworkSlot): void {
    this.taken.delete(slot);
  }

  async rested(): Promise<void> {}

  async close(): Promise<void> {}
}

export class StandInWorld implements AsyncDisposable {
  readonly dir: string;
  readonly paths: Paths;
  readonly slots = new LoopbackSlots();
  readonly image: GuestImage;
  readonly hypervisor: CloudHypervisor;
  readonly machines: Machine[] = [];

  private constructor(dir: string, image: GuestImage) {
    this.dir = dir;
    this.paths = pathsOf(join(dir, 'data'));
    this.image = image;
    this.hypervisor = this.driver();
  }

  static async open(): Promise<StandInWorld> {
    const dir = await mkdtemp(join(tmpdir(), 'thaw-chs-'));
    return new StandInWorld(dir, await imageIn(dir));
  }

  /** Another driver on the same files. */
  driver(spares = 0): CloudHypervisor {
    return new CloudHypervisor({
      program: [process.execPath, join(import.meta.dirname, 'api-stand-in.ts')],
      paths: this.paths,
      log: silentLog,
      slots: this.slots,
      spares,
      confine: false,
    });
  }

  /** What VMMs that start from now on answer instead of working. */
  refuse(refusals: Refusals): void {
    this.slots.environment.THAW_STAND_IN_REFUSALS = JSON.stringify(refusals);
  }

  async runDirOf(vmId: string): Promise<string> {
    const runDir = this.paths.vmDir(vmId);
    await mkdir(runDir, { recursive: true });
    return runDir;
  }

  async boot(name: string, memoryMb = shape.memoryMb): Promise<{ machine: Machine; files: CapturedFiles }> {
    const vmId = newVmId();
    const files = capturedFilesIn(join(this.dir, name));
    await mkdir(join(this.dir, name));
    const machine = await this.hypervisor.boot({
      vmId,
      shape: { ...shape, memoryMb },
      image: this.image,
      runDir: await this.runDirOf(vmId),
      pagesPath: files.pagesPath,
    });
    this.machines.push(machine);
    return { machine, files };
  }

  async restore(from: CapturedFiles, hypervisor = this.hypervisor, delta?: PageDelta): Promise<Machine> {
    const vmId = newVmId();
    const runDir = await this.runDirOf(vmId);
    const machine = await hypervisor.restore({
      vmId,
      shape,
      image: this.image,
      runDir,
      from,
      memory: 'private',
      ...(delta ? { delta } : {}),
    });
    this.machines.push(machine);
    return machine;
  }

  /** Pids of processes that are held ready, by the records of their directories. */
  async spareVmms(): Promise<number[]> {
    const used = new Set(this.machines.map(({ pid }) => pid));
    const pids: number[] = [];
    for (const name of await readdir(this.paths.vmsDir)) {
      const record = await readProcessRecord(this.paths.vmDir(name));
      if (record && !used.has(record.pid) && (await readStartTime(record.pid)) !== undefined)
        pids.push(record.pid);
    }
    return pids;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.machines.map((machine) => machine.destroy()));
    await this.hypervisor.close();
    await rm(this.dir, { recursive: true, force: true });
  }
}

export async function imageIn(dir: string): Promise<GuestImage> {
  const image = {
    digest: 'stand-in',
    kernelPath: join(dir, 'vmlinuz'),
    vmlinuxPath: join(dir, 'vmlinux'),
    initrdPath: join(dir, 'initrd'),
    rootPath: join(dir, 'root'),
    blankDiskPath: join(dir, 'blank'),
  };
  for (const path of Object.values(image).slice(1)) await writeFile(path, 'stands in');
  await truncate(image.blankDiskPath, 1024 * 1024);
  return image;
}
