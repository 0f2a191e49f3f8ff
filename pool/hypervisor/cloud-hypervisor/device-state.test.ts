// Device state as text: the list of memory ranges is replaced, every other byte stays.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { lowMemoryBytes, withDelta, withoutMemoryRanges } from './device-state.ts';

const memory = (ranges: string) => `{"memory_ranges":{"data":${ranges}},"guest_ram_mappings":[{"slot":0}]}`;
const state = (ranges: string) =>
  JSON.stringify({
    snapshots: {
      'cpu-manager': { snapshot_data: { state: '{"tsc":18446744073709551615}' } },
      'memory-manager': { snapshot_data: { state: memory(ranges) } },
    },
  });
const kib = 1024;

describe('the device state', () => {
  it('loses its memory ranges and nothing else', () => {
    assert.equal(
      withoutMemoryRanges(state('[{"gpa":0,"length":4096},{"gpa":8192,"length":4096}]')),
      state('[]'),
    );
    assert.equal(withoutMemoryRanges(state('[]')), state('[]'));
  });

  it('names the pages of a delta, above the hole, too, and never one range across it', () => {
    const runs = [
      { offsetBytes: 8 * kib, sizeBytes: 4 * kib },
      { offsetBytes: lowMemoryBytes - 4 * kib, sizeBytes: 12 * kib },
      { offsetBytes: lowMemoryBytes + 64 * kib, sizeBytes: 4 * kib },
    ];
    const four = 4 * 1024 ** 3;
    const ranges = [
      { gpa: 8 * kib, length: 4 * kib },
      { gpa: lowMemoryBytes - 4 * kib, length: 4 * kib },
      { gpa: four, length: 8 * kib },
      { gpa: four + 64 * kib, length: 4 * kib },
    ];
    assert.equal(withDelta(state('[]'), runs), state(JSON.stringify(ranges)));
    assert.equal(withDelta(state('[]'), []), state('[]'));
  });

  it('is refused when it is torn or names its memory twice', () => {
    assert.throws(() => withoutMemoryRanges(state('[]').slice(0, -4)), { code: 'hypervisor-failed' });
    const twice = JSON.stringify([JSON.parse(state('[]')), JSON.parse(state('[]'))]);
    assert.throws(() => withoutMemoryRanges(twice), /2 times, not once/);
    assert.throws(() => withoutMemoryRanges('{}'), /0 times, not once/);
  });
});
