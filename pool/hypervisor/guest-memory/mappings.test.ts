// Tests which lines of /proc/PID/maps count, and that shares cover all of them exactly once.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { pageBytes, parseMappings, shareOut } from './mappings.ts';

const maps = [
  '7f0000400000-7f0000800000 rw-p 00200000 fe:00 12 /data/snap/pages',
  '7f0000000000-7f0000200000 rw-p 00000000 fe:00 12 /data/snap/pages',
  '7f0001000000-7f0001200000 r--s 00000000 fe:00 12 /data/snap/pages',
  '7f0002000000-7f0002200000 rw-p 00000000 fe:00 13 /data/snap/pages2',
  '7f0003000000-7f0003200000 rw-p 00000000 00:00 0 [heap]',
  '7f0004000000-7f0004001000 r-xp 00000000 fe:00 14 /usr/bin/x y',
  '',
].join('\n');

describe('mappings of a page file', () => {
  it('are the private writable ones of that path, by their place in the file', () => {
    assert.deepEqual(parseMappings(maps, '/data/snap/pages'), [
      { address: 0x7f0000000000, offsetBytes: 0, sizeBytes: 0x200000 },
      { address: 0x7f0000400000, offsetBytes: 0x200000, sizeBytes: 0x400000 },
    ]);
  });

  it('are found though the name is gone', () => {
    const deleted = '7f0000000000-7f0000200000 rw-p 00000000 fe:00 12    /data/a b (deleted)\n';
    assert.equal(parseMappings(deleted, '/data/a b').length, 1);
  });

  it('must not show a page twice', () => {
    const twice = maps.replace('00200000 fe', '00100000 fe');
    assert.throws(() => parseMappings(twice, '/data/snap/pages'), { code: 'hypervisor-failed' });
  });

  it('are shared out without loss or overlap', () => {
    const mappings = parseMappings(maps, '/data/snap/pages');
    for (const parts of [1, 2, 3, 7]) {
      const shares = shareOut(mappings, parts);
      assert.ok(shares.length <= parts);
      let next = 0;
      for (const { offsetBytes, sizeBytes, address } of shares.flat()) {
        assert.equal(offsetBytes, next);
        assert.equal(address - offsetBytes, offsetBytes < 0x200000 ? 0x7f0000000000 : 0x7f0000200000);
        assert.equal(sizeBytes % pageBytes, 0);
        next += sizeBytes;
      }
      assert.equal(next, 0x600000);
    }
  });
});
