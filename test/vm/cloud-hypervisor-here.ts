// Owns whether tests of real Cloud Hypervisor can run on this machine. Invariant: a test that cannot says why.
import { access, constants, readFile } from 'node:fs/promises';

export const binaryPath = process.env.THAW_CLOUD_HYPERVISOR;

/** @returns undefined when they can. */
export async function whyNotHere(): Promise<string | undefined> {
  if (!binaryPath) return 'THAW_CLOUD_HYPERVISOR names no binary';
  if (process.getuid?.() !== 0) return 'needs root, for network namespaces';
  const usable = await access('/dev/kvm', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
  // A /dev/kvm of a CPU without them runs some guests at best.
  const hardware = /^flags\s*:.* (vmx|svm)\b/m.test(await readFile('/proc/cpuinfo', 'utf8'));
  return usable && hardware ? undefined : 'no KVM in hardware: npm run test:metal has one';
}
