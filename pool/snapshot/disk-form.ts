// Owns knowing what a snapshot's disk file is: a layer over another disk, or the whole disk as its guest wrote it.
// Invariant: a disk that a guest wrote is not asked. It could hold what reads as a layer, with a file of the host below.
import { isLayer } from '../hypervisor/disk-layer/read-layer.ts';
import type { Compatibility } from '../hypervisor/hypervisor.ts';

/** Cloud Hypervisor has flat disks; every other file was made by Thaw or by QEMU, around what the guest wrote. */
export const hasFlatDisks = ({ hypervisor }: Compatibility): boolean => hypervisor === 'cloud-hypervisor';

export const isDiskLayer = async (compatibility: Compatibility, path: string): Promise<boolean> =>
  !hasFlatDisks(compatibility) && (await isLayer(path));
