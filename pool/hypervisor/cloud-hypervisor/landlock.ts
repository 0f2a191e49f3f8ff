// Owns knowing whether this kernel has the Landlock that Cloud Hypervisor insists on. Changes nothing.
import koffi from 'koffi';

/** The same on every architecture. */
const createRulesetCall = 444;
const askVersion = 1;
/** With the right to truncate, Linux 6.2: Cloud Hypervisor asks for it, and refuses to run with less. */
const neededVersion = 3;

const syscall = koffi
  .load(null)
  .func('int64_t syscall(int64_t number, void *attributes, size_t sizeBytes, uint32_t flags)');

/** @returns why not; undefined when Landlock can be put in force. */
export function whyNoLandlock(): string | undefined {
  const version = Number(syscall(createRulesetCall, null, 0, askVersion));
  if (version < 0) return 'this kernel has no Landlock, or it is not switched on';
  if (version < neededVersion) return `Landlock of this kernel is too old (${version}): Linux 6.2 has it`;
  return undefined;
}
