// Owns whether tests of real Cloud Hypervisor can run on this machine. Invariant: a test that cannot says why.
import { access, constants } from 'node:fs/promises';
import { hasHardwareVirtualisation } from '../../pool/hypervisor/choose.ts';

export const binaryPath = process.env.THAW_CLOUD_HYPERVISOR;

/** Asked of the CPU: the /dev/kvm of one without runs some guests at best. @returns undefined when they can. */
export async function whyNotHere(): Promise<string | undefined> {
  if (!binaryPath) return 'THAW_CLOUD_HYPERVISOR names no binary';
  if (process.getuid?.() !== 0) return 'needs root, for network namespaces';
  const usable = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  return usable && (await hasHardwareVirtualisation())
    ? undefined
    : 'no KVM in hardware: npm run test:metal has one';
}
