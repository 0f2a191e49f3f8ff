// Owns what Cloud Hypervisor's refusals mean: its own words, matched from the root cause outwards, to a typed error.
// Invariant: a refusal that no row knows is still typed and keeps all of its words.
// Source: measured on v53; each row has its test.
import { type ErrorCode, ThawError } from '../../../shared/errors.ts';
import { ApiRefusal } from './api-client.ts';

interface Row {
  /** Every pattern must be found in the chain, in any place. */
  words: readonly RegExp[];
  code: ErrorCode;
  reason: string;
}

const rows: readonly Row[] = [
  {
    words: [/No space left on device/],
    code: 'no-space',
    reason: 'the disk is full',
  },
  {
    words: [/Error checking (cpu feature|CPUID) compatibility/],
    code: 'incompatible',
    reason: 'this CPU lacks features of the one the snapshot was made on',
  },
  {
    words: [/Error deserialising VM state snapshot|Error deserialising/],
    code: 'restore-failed',
    reason: 'the device state is torn',
  },
  {
    words: [/Failed to stat filesystem/, /No such file or directory/],
    code: 'restore-failed',
    reason: 'the page file is missing',
  },
  {
    words: [/Open tap device failed|Failed to open taps/, /Device or resource busy/],
    code: 'restore-failed',
    reason: 'the network slot is held by another VM',
  },
  {
    words: [/Failed to open taps|virtio-net device/],
    code: 'restore-failed',
    reason: 'the network slot cannot be opened',
  },
  {
    words: [/vsock/, /Address already in use/],
    code: 'restore-failed',
    reason: 'a stale socket lies in the run directory',
  },
  {
    words: [/vsock/, /No such file or directory/],
    code: 'restore-failed',
    reason: 'the run directory is gone',
  },
  {
    words: [/Failed to get Write lock|file is already locked/],
    code: 'restore-failed',
    reason: 'the disk is held by another VM',
  },
  {
    words: [/disk path/, /No such file or directory/],
    code: 'restore-failed',
    reason: 'the disk is missing',
  },
  {
    words: [/Cannot open initramfs file/],
    code: 'restore-failed',
    reason: 'the configuration names an initramfs that is not there',
  },
  {
    words: [/Payload configuration is not bootable/],
    code: 'restore-failed',
    reason: 'the configuration has no payload',
  },
  {
    words: [/Memory configuration is not valid|No memory region found/],
    code: 'restore-failed',
    reason: 'the memory of the configuration is not that of the device state',
  },
  {
    words: [/Failed to apply landlock/i],
    code: 'hypervisor-failed',
    reason: 'landlock could not be put in force',
  },
  {
    words: [/unknown variant/],
    code: 'hypervisor-failed',
    reason: 'this release does not know what was asked',
  },
  { words: [/VM is already created/], code: 'conflict', reason: 'the process holds a VM already' },
  { words: [/InvalidStateTransition/], code: 'conflict', reason: 'the VM is in another state' },
  {
    words: [/Trying to snapshot while VM is running/],
    code: 'conflict',
    reason: 'a running VM cannot be saved',
  },
  {
    words: [/Destination is not a directory/],
    code: 'hypervisor-failed',
    reason: 'the directory to save to is missing',
  },
];

/**
 * @param during what failed, for the message.
 * @param otherwise the code of a failure that no row knows.
 */
export function typedFailure(error: unknown, during: string, otherwise: ErrorCode): ThawError {
  if (error instanceof ThawError) return error;
  if (!(error instanceof ApiRefusal))
    return new ThawError(otherwise, `${during}: ${(error as Error).message}`, { cause: error });
  const row = rows.find(({ words }) => words.every((word) => error.chain.some((link) => word.test(link))));
  const chain = error.chain.join(' ← ');
  const detail = row ? `${row.reason} (${chain})` : chain;
  return new ThawError(row?.code ?? otherwise, `${during}: ${detail}`, { cause: error });
}

/**
 * The one refusal that is wanted: `vm.snapshot` has written configuration and device state, and stops at the file for
 * guest memory, which is there already. Anything else, however similar, is a failure.
 */
export function isStateOnlySnapshot(error: unknown): boolean {
  return (
    error instanceof ApiRefusal &&
    error.status === 500 &&
    /^Error creating memory snapshot file ".*memory-ranges"$/.test(error.chain.at(-2) ?? '') &&
    error.chain.at(-1) === 'File exists (os error 17)'
  );
}
