// Owns which releases of Cloud Hypervisor are driven. Invariant: a release that is not known to work is refused with
// the reason before it holds a VM; what it offers is decided here and nowhere else.

/** From here on: zones on files in `vm.restore`, `memory_restore_mode`, `resume`, inherited event monitor. */
const oldestMajor = 53;

/** @returns why this release is not driven; undefined when it is. */
export function refusedVersion(version: string): string | undefined {
  const major = Number(/^v?(\d+)\.\d+/.exec(version)?.[1]);
  if (!Number.isInteger(major)) return `Cloud Hypervisor tells a version that is none: ${version}`;
  if (major < oldestMajor)
    return `Cloud Hypervisor ${version} is too old: restores as Thaw asks for them work from v${oldestMajor} on`;
  return undefined;
}

/** From `cloud-hypervisor --version`. */
export const parseVersion = (text: string): string | undefined =>
  /^cloud-hypervisor v?(\S+)/m.exec(text)?.[1];
