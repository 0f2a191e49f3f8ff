// Owns the yardstick of the Cloud Hypervisor benchmark: the VMM's ordinary way, a snapshot with all memory in it and a
// restore that copies it back. Refuses to own Thaw's way (pool/hypervisor/cloud-hypervisor).
// Invariant: the same process in the same jail with the same limits, disk, devices and greeting, by the same steps; only
// memory is handled otherwise. The memory file is in the host's page cache and written out: the best case for this way,
// and nothing that runs on beside what is measured next.
import { chmod, link, mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ControlClient } from '../../pool/guest/control-client.ts';
import { handshake } from '../../pool/guest/handshake.ts';
import { Cgroups } from '../../pool/host/cgroups.ts';
import { NamespaceSlots } from '../../pool/host/network-slots.ts';
import { cloneDisk } from '../../pool/host/sparse-file.ts';
import { readDevices, writeSnapshotDir } from '../../pool/hypervisor/cloud-hypervisor/device-state.ts';
import { GuestChannel } from '../../pool/hypervisor/cloud-hypervisor/guest-channel.ts';
import { Jail } from '../../pool/hypervisor/cloud-hypervisor/jail.ts';
import { cloneConfig, names, type VmConfig } from '../../pool/hypervisor/cloud-hypervisor/vm-config.ts';
import { Vmm, type VmmHost } from '../../pool/hypervisor/cloud-hypervisor/vmm.ts';
import type { CapturedFiles, MachineShape } from '../../pool/hypervisor/hypervisor.ts';
import { controlVsockPort } from '../../shared/agent-protocol.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { newVmId } from '../../shared/ids.ts';
import { silentLog } from '../../shared/log.ts';
import type { BenchWorld } from './bench-world.ts';

const callTimeoutMs = 120_000;

export interface SealedTemplate {
  files: CapturedFiles;
  nonce: string;
  shape: MachineShape;
}

/** The VMM's own snapshot of a clone of a template. */
interface OwnSnapshot {
  template: SealedTemplate;
  dir: string;
  config: VmConfig;
  state: string;
}

export class OwnWay {
  readonly #world: BenchWorld;
  readonly #host: VmmHost;
  readonly #slots: NamespaceSlots;

  private constructor(world: BenchWorld, host: VmmHost, slots: NamespaceSlots) {
    this.#world = world;
    this.#host = host;
    this.#slots = slots;
  }

  static async open(world: BenchWorld, binary: string): Promise<OwnWay> {
    const { paths } = world;
    const slots = new NamespaceSlots({ recordsDir: join(paths.dataDir, 'network-own'), log: silentLog });
    const jail = await Jail.open([binary], paths.jailDir);
    return new OwnWay(world, { jail, slots, cgroups: await Cgroups.open(paths.dataDir) }, slots);
  }

  /** Resolves when nothing goes on in the background. */
  rested(): Promise<void> {
    return this.#slots.rested();
  }

  close(): Promise<void> {
    return this.#slots.close();
  }

  /** @returns how long a clone stands still for each of `times` snapshots, and the last of them. */
  async save(
    template: SealedTemplate,
    times: number,
  ): Promise<{ pausesMs: number[]; snapshot: OwnSnapshot }> {
    await using cleanup = new Cleanup();
    const vmm = await this.#start(cleanup);
    await this.#place(vmm, template);
    await vmm.placePages(template.files.pagesPath);
    const devices = await readDevices(template.files.devicesPath);
    const config = cloneConfig(devices.config, { sharedMemory: false, landlock: false });
    const { control } = await this.#restore(vmm, config, devices.state);
    await control.request({ op: 'health' }, callTimeoutMs);
    const pausesMs: number[] = [];
    for (let time = 0; time < times; time++) {
      await this.#emptyTarget(vmm);
      const startMs = performance.now();
      await vmm.api.pause();
      await vmm.api.snapshot(`file://${names.to}`);
      await vmm.api.resume();
      pausesMs.push(performance.now() - startMs);
    }
    const dir = join(this.#world.dataDir, `own-${template.shape.memoryMb}`);
    await rename(vmm.path(names.to), dir);
    await sync(join(dir, names.memory));
    const [configText, state] = await Promise.all(
      ['config.json', 'state.json'].map((name) => readFile(join(dir, name), 'utf8')),
    );
    const saved = { ...(JSON.parse(configText!) as VmConfig), payload: config.payload };
    return { pausesMs, snapshot: { template, dir, config: anonymous(saved), state: state! } };
  }

  /** By a process that was ready. @returns milliseconds from the asking to the agent's answer, and of the call alone. */
  async restore({
    template,
    dir,
    config,
    state,
  }: OwnSnapshot): Promise<{ elapsedMs: number; callMs: number }> {
    await using cleanup = new Cleanup();
    const runDir = await this.#newRunDir(cleanup);
    const vmm = await this.#start(cleanup);
    await chmod(join(dir, names.memory), 0o444);
    await this.rested();
    const startMs = performance.now();
    await vmm.answers();
    await vmm.moveTo(runDir, template.shape);
    await this.#place(vmm, template);
    await mkdir(vmm.path(names.from));
    await link(join(dir, names.memory), join(vmm.path(names.from), names.memory));
    const { control, callMs } = await this.#restore(vmm, config, state);
    await handshake(control, newVmId(), template.nonce, callTimeoutMs);
    await control.request({ op: 'health' }, callTimeoutMs);
    return { elapsedMs: performance.now() - startMs, callMs };
  }

  async #start(cleanup: Cleanup): Promise<Vmm> {
    const vmm = await Vmm.start(this.#host, await this.#newRunDir(cleanup));
    cleanup.defer('VMM', () => vmm.end());
    return vmm;
  }

  async #newRunDir(cleanup: Cleanup): Promise<string> {
    const runDir = this.#world.paths.vmDir(newVmId());
    await mkdir(runDir, { recursive: true });
    cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
    return runDir;
  }

  async #place(vmm: Vmm, { files }: SealedTemplate): Promise<void> {
    await vmm.placeReadable(this.#world.image.rootPath, names.root);
    await cloneDisk(files.diskPath, vmm.path(names.disk));
    await vmm.give(vmm.path(names.disk));
  }

  async #restore(vmm: Vmm, config: VmConfig, state: string) {
    const dir = vmm.path(names.from);
    await writeSnapshotDir(dir, config, state);
    await vmm.give(dir);
    const channel = await GuestChannel.listen(vmm.path(`${names.vsock}_${controlVsockPort}`));
    void vmm.exited.then(() => channel.close());
    const startMs = performance.now();
    await vmm.api.restore({
      source_url: `file://${names.from}`,
      memory_restore_mode: 'Copy',
      resume: true,
    });
    const callMs = performance.now() - startMs;
    return { control: new ControlClient(await channel.connection(callTimeoutMs, vmm.exited)), callMs };
  }

  async #emptyTarget(vmm: Vmm): Promise<void> {
    const dir = vmm.path(names.to);
    await rm(dir, { recursive: true, force: true });
    await mkdir(dir, { mode: 0o700 });
    await vmm.give(dir);
  }
}

async function sync(path: string): Promise<void> {
  await using file = await open(path, 'r');
  await file.sync();
}

/** As Cloud Hypervisor keeps a guest's memory by itself: on no file. */
const anonymous = (config: VmConfig): VmConfig => ({
  ...config,
  memory: {
    ...config.memory,
    zones: config.memory.zones.map(({ file: _file, ...zone }) => zone as (typeof config.memory.zones)[0]),
  },
  net: config.net.map((device) => ({ ...device, host_mac: null })),
});
