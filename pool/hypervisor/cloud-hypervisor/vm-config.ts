// Owns the configuration Cloud Hypervisor is given: written for a boot, rewritten for a clone.
// Invariant: a clone has the devices of its template in the same order with the same ids (device state is matched by
// them); only files, the network device and the memory's sharing differ. Every path is a name in the VMM's directory,
// so that the configuration of a snapshot is the same for all its clones.
import { commonKernelArguments } from '../guest-kernel.ts';
import type { MachineShape } from '../hypervisor.ts';

/** Names in the directory a VMM works in, and sees as its root where it is jailed. */
export const names = {
  api: 'api',
  vsock: 'vs',
  pages: 'pages',
  root: 'root',
  disk: 'disk',
  kernel: 'kernel',
  initrd: 'initrd',
  serial: 'serial',
  /** A snapshot that is read. */
  from: 'from',
  /** In it: pages of memory. */
  memory: 'memory-ranges',
  /** A snapshot that is written. */
  to: 'to',
} as const;

/** Bumped when a machine of other devices is made; snapshots of the old one are then refused. */
export const machineVersion = 'thaw-1';
export const tapName = 'tap0';
const guestMac = '52:54:00:12:34:56';
const guestCid = 3;
const memoryZone = 'mem0';
/** A guest that resets would be booted from here: nothing is there, so the VMM ends instead of serving another guest. */
const noKernel = '/nonexistent';
const kernelArguments = `${commonKernelArguments} clocksource=kvm-clock`;

interface MemoryZone {
  id: string;
  size: number;
  file: string;
  shared: boolean;
}

interface Device {
  id?: string;
}

/** What the driver sets; everything else in a saved configuration is kept as it is. */
export interface VmConfig {
  cpus: { boot_vcpus: number; max_vcpus: number };
  memory: { size: number; zones: MemoryZone[] };
  payload: { kernel: string; initramfs?: string; cmdline: string };
  disks: (Device & { path: string; readonly?: boolean; image_type: 'Raw' })[];
  net: (Device & { tap: string; mac: string; host_mac?: string | null })[];
  vsock: Device & { cid: number; socket: string };
  serial: { mode: 'File' | 'Null'; file?: string };
  console: { mode: 'Off' };
  landlock_enable?: boolean;
  landlock_rules?: { path: string; access: 'rw' }[] | null;
}

export interface ConfigOptions {
  sharedMemory: boolean;
  landlock: boolean;
}

export function bootConfig(shape: MachineShape, options: ConfigOptions): VmConfig {
  const size = shape.memoryMb * 1024 * 1024;
  return {
    cpus: { boot_vcpus: shape.vcpus, max_vcpus: shape.vcpus },
    // A zone on a shared file: what the guest writes is in the snapshot's page file at once, and a capture saves none of it.
    memory: {
      size: 0,
      zones: [{ id: memoryZone, size, file: names.pages, shared: options.sharedMemory }],
    },
    payload: { kernel: names.kernel, initramfs: names.initrd, cmdline: kernelArguments },
    disks: [
      { path: names.root, readonly: true, image_type: 'Raw' },
      { path: names.disk, image_type: 'Raw' },
    ],
    net: [{ tap: tapName, mac: guestMac }],
    vsock: { cid: guestCid, socket: names.vsock },
    serial: { mode: 'File', file: names.serial },
    console: { mode: 'Off' },
    ...landlockOf(options),
  };
}

/** @param saved the configuration that stands beside the device state, ids and defaults filled in. */
export function cloneConfig(saved: VmConfig, options: ConfigOptions): VmConfig {
  return {
    ...saved,
    memory: {
      ...saved.memory,
      size: 0,
      zones: saved.memory.zones.map((zone) => ({ ...zone, file: names.pages, shared: options.sharedMemory })),
    },
    payload: { kernel: noKernel, cmdline: saved.payload.cmdline },
    // The saved one has the template's own tap's address filled in.
    net: saved.net.map((device) => ({ ...device, tap: tapName, host_mac: null })),
    // Nobody reads it, and a guest could fill the host's disk with it.
    serial: { mode: 'Null' },
    ...landlockOf(options),
  };
}

/** By the directory, not file by file: a snapshot is written into one that is made for it. */
const landlockOf = ({ landlock }: ConfigOptions) => ({
  landlock_enable: landlock,
  landlock_rules: landlock ? [{ path: '.', access: 'rw' as const }] : null,
});

export const memoryBytesOf = (config: VmConfig): number =>
  config.memory.zones.reduce((sum, zone) => sum + zone.size, 0);
