// Cloud Hypervisor's own words, as measured on v53, and what each means here; and the one refusal that is wanted.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { ApiRefusal } from './api-client.ts';
import { isStateOnlySnapshot, typedFailure } from './failures.ts';

const absent = 'No such file or directory (os error 2)';
const cases: [chain: string[], code: string, words: RegExp][] = [
  [['Memory manager error', 'Failed to stat filesystem', absent], 'restore-failed', /page file is missing/],
  [
    ['Error checking cpu feature compatibility', 'Error checking CPUID compatibility'],
    'incompatible',
    /lacks features/,
  ],
  [
    ['Error deserialising VM state snapshot', 'EOF while parsing a string at line 1 column 99'],
    'restore-failed',
    /torn/,
  ],
  [
    [
      'Cannot create virtio-net device',
      'Failed to open taps',
      'Open tap device failed',
      'Unable to configure tap interface',
      'Device or resource busy (os error 16)',
    ],
    'restore-failed',
    /slot is held by another VM/,
  ],
  [['Cannot create virtio-net device', 'Failed to open taps'], 'restore-failed', /slot cannot be opened/],
  [
    ['Cannot create virtio-vsock backend', 'Error binding to the host-side Unix socket', absent],
    'restore-failed',
    /run directory is gone/,
  ],
  [
    [
      'Cannot create virtio-vsock backend',
      'Error binding to the host-side Unix socket',
      'Address already in use (os error 98)',
    ],
    'restore-failed',
    /stale socket/,
  ],
  [
    [
      'Error locking disk images: Another instance likely holds a lock',
      'Failed to get Write lock for disk image: disk',
      'The file is already locked',
    ],
    'restore-failed',
    /disk is held by another VM/,
  ],
  [['Cannot open disk path', 'I/O error (path=disk op=open)', absent], 'restore-failed', /disk is missing/],
  [['Cannot open initramfs file', absent], 'restore-failed', /initramfs/],
  [['Payload configuration is not bootable'], 'restore-failed', /no payload/],
  [['Memory configuration is not valid'], 'restore-failed', /memory of the configuration/],
  [['No memory region found'], 'restore-failed', /memory of the configuration/],
  [
    ['Failed to deserialize JSON', 'unknown variant `cow`, expected `Copy` or `OnDemand`'],
    'hypervisor-failed',
    /does not know/,
  ],
  [['VM is already created'], 'conflict', /holds a VM already/],
  [['InvalidStateTransition(Paused, Paused)'], 'conflict', /another state/],
  [['Trying to snapshot while VM is running'], 'conflict', /running VM/],
  [['Destination is not a directory: "to"'], 'hypervisor-failed', /directory to save to/],
  [['Failed to apply landlock config during vm_create'], 'hypervisor-failed', /landlock/],
  [['I/O error', 'No space left on device (os error 28)'], 'no-space', /disk is full/],
];

describe("Cloud Hypervisor's refusals", () => {
  for (const [chain, code, words] of cases)
    it(`${chain.at(-1)} of ${chain[0]} is ${code}`, () => {
      const refusal = new ApiRefusal('vm.restore', 500, ['Error from API', ...chain]);
      const failure = typedFailure(refusal, 'restore', 'internal');
      assert.equal(failure.code, code);
      assert.match(failure.message, words);
      for (const link of chain) assert.ok(failure.message.includes(link), 'its own words are kept');
    });

  it('keeps all words of one that no row knows', () => {
    const failure = typedFailure(new ApiRefusal('vm.restore', 500, ['a', 'b']), 'restore', 'restore-failed');
    assert.equal(failure.code, 'restore-failed');
    assert.match(failure.message, /a ← b/);
  });

  it('accepts a snapshot without memory by its exact words alone', () => {
    const chain = (file: string, end = 'File exists (os error 17)') => [
      'Error from API',
      'Failed to send migratable component snapshot',
      `Error creating memory snapshot file "${file}"`,
      end,
    ];
    const is = (links: string[], status = 500) =>
      isStateOnlySnapshot(new ApiRefusal('vm.snapshot', status, links));
    assert.ok(is(chain('to/memory-ranges')));
    assert.ok(!is(chain('to/memory-ranges'), 400));
    assert.ok(!is(chain('to/state.json')));
    assert.ok(!is(chain('to/memory-ranges', 'No space left on device (os error 28)')));
    assert.ok(!is([...chain('to/memory-ranges'), 'more']));
    assert.ok(!isStateOnlySnapshot(new Error('File exists (os error 17)')));
  });
});
