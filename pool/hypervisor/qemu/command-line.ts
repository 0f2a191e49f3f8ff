// Owns QEMU's argument list. Invariant: source and clone get the same machine, devices and order (QEMU matches
// device state by path); only files, descriptors and the memory's sharing differ.
// Facts: measured on QEMU 7.2 (Debian 12); `docs/decisions/0003-qemu.md` says why each option stands.
import { agentPort, controlPortName, runnerPort } from '../../../shared/agent-protocol.ts';
import { commonKernelArguments } from '../guest-kernel.ts';
import type { GuestImage, MachineShape } from '../hypervisor.ts';

/** Descriptors that the driver hands to the child, by number. */
export const inherited = { qmp: 3, control: 4, devicesIn: 5, devicesOut: 6 } as const;
/** QEMU has dropped its privileges when it captures: it writes to this inherited descriptor, not to a path. */
export const devicesOutput = '/dev/fdset/1';
export const devicesInput = `fd:${inherited.devicesIn}`;
export const guestAddress = '10.0.2.15';
export const loopback = '127.0.0.1';
export const machineType = 'pc,usb=off,vmport=off,hpet=off';
export const cpuModel = 'max';

export type Accelerator = 'tcg' | 'kvm';

export interface QemuCommand {
  accelerator: Accelerator;
  shape: MachineShape;
  image: GuestImage;
  pagesPath: string;
  sharedMemory: boolean;
  diskPath: string;
  /** Serial console goes to this file; nowhere when absent (a guest could fill the disk). */
  serialLogPath?: string;
  /** Where the host reaches the VM's ports. Absent: on the host's loopback, and the guest has no way out at all. */
  slotAddress?: string;
  /** Numeric uid and gid QEMU drops to after opening its files; absent when Thaw is not root. */
  runAs?: number;
  /** `restore-later`: loads its state only when told, so that its memory can be changed before. */
  mode: 'boot' | 'restore' | 'restore-later';
}

// A comma in a value would start the next suboption: QEMU's own escape is to double it.
const value = (text: string): string => text.replaceAll(',', ',,');

export function qemuArgs(command: QemuCommand): string[] {
  const { shape, image } = command;
  const accel = command.accelerator === 'tcg' ? 'tcg,tb-size=64' : 'kvm';
  const serial = command.serialLogPath ? `file,id=ser0,path=${value(command.serialLogPath)}` : 'null,id=ser0';
  return [
    ['-nodefaults', '-no-user-config', '-no-reboot'],
    ['-display', 'none'],
    ['-sandbox', 'on,obsolete=deny,spawn=deny,resourcecontrol=deny'],
    ['-M', `${machineType},memory-backend=ram0`],
    ['-accel', accel],
    ['-cpu', cpuModel],
    ['-smp', String(shape.vcpus)],
    ['-m', `${shape.memoryMb}M`],
    [
      '-object',
      `memory-backend-file,id=ram0,size=${shape.memoryMb}M,mem-path=${value(command.pagesPath)},share=${command.sharedMemory ? 'on' : 'off'}`,
    ],
    ['-chardev', `socket,id=qmp,fd=${inherited.qmp}`, '-mon', 'chardev=qmp,mode=control'],
    ['-chardev', serial, '-serial', 'chardev:ser0'],
    ['-drive', `if=none,id=vda,file=${value(image.rootPath)},format=raw,readonly=on`],
    ['-device', 'virtio-blk-pci,drive=vda'],
    // A clone's disk dies with the clone; a capture syncs it itself. So host flushes would only cost time.
    [
      '-drive',
      `if=none,id=vdb,file=${value(command.diskPath)},format=qcow2,cache=unsafe,discard=unmap,auto-read-only=off`,
    ],
    ['-device', 'virtio-blk-pci,drive=vdb'],
    ['-netdev', userNetwork(command.slotAddress)],
    ['-device', 'virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56,romfile='],
    ['-device', 'virtio-serial-pci', '-chardev', `socket,id=ctl,fd=${inherited.control}`],
    ['-device', `virtserialport,chardev=ctl,name=${controlPortName}`],
    ['-add-fd', `fd=${inherited.devicesOut},set=1`],
    command.runAs === undefined ? [] : ['-runas', `${command.runAs}:${command.runAs}`],
    command.mode === 'boot' ? bootArgs(image) : restoreArgs(command.mode),
  ].flat();
}

/** In a slot it is the packet filter of the slot's namespace that restricts, and can be told to do so less. */
function userNetwork(slotAddress: string | undefined): string {
  const forwards = [agentPort, runnerPort].map((port) => forward(port, slotAddress));
  return `user,id=n0,restrict=${slotAddress === undefined ? 'on' : 'off'},ipv6=off,${forwards.join(',')}`;
}

/** Port 0: the kernel picks a free one, read back with `info usernet`; no race for a reserved number. */
export const forward = (guestPort: number, hostAddress = loopback): string =>
  `hostfwd=${forwardRule(guestPort, hostAddress)}`;
export const forwardRule = (guestPort: number, hostAddress: string): string =>
  `tcp:${hostAddress}:0-${guestAddress}:${guestPort}`;

const bootArgs = (image: GuestImage): string[] => [
  '-kernel',
  image.kernelPath,
  '-initrd',
  image.initrdPath,
  '-append',
  `${commonKernelArguments} reboot=t`,
];

// The state comes from `xen-save-devices-state`, which writes no configuration section.
const restoreArgs = (mode: 'restore' | 'restore-later') => [
  '-S',
  '-incoming',
  mode === 'restore' ? devicesInput : 'defer',
  '-global',
  'migration.send-configuration=off',
  // No switch has to learn where the guest is now: announcing that runs much of the guest's network code.
  '-global',
  'migration.announce-rounds=0',
];
