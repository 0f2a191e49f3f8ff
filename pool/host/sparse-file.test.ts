// Tests the copy of a disk: content, size, holes, refusals.
import assert from 'node:assert/strict';
import { mkdtemp, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { cloneDisk } from './sparse-file.ts';

const sizeBytes = 64 * 1024 * 1024;

describe('copy of a disk', () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-disk-'));
  });
  after(() => rm(dir, { recursive: true, force: true }));

  async function sparse(name: string, content: readonly [offsetBytes: number, text: string][]) {
    const path = join(dir, name);
    await using file = await open(path, 'w');
    await file.truncate(sizeBytes);
    for (const [offsetBytes, text] of content) await file.write(text, offsetBytes);
    return path;
  }

  it('copies what is there and none of the holes', async () => {
    const from = await sparse('from', [
      [0, 'first'],
      [5_000_000, 'middle'],
      [sizeBytes - 4, 'last'],
    ]);
    const to = join(dir, 'to');
    await cloneDisk(from, to);
    assert.ok((await readFile(from)).equals(await readFile(to)));
    const { size, blocks } = await stat(to);
    assert.equal(size, sizeBytes);
    assert.ok(blocks * 512 < 1024 * 1024, `${blocks * 512} bytes are allocated`);
  });

  it('copies an empty and a wholly sparse file', async () => {
    const empty = join(dir, 'empty');
    await writeFile(empty, '');
    await cloneDisk(empty, join(dir, 'empty-copy'));
    assert.equal((await stat(join(dir, 'empty-copy'))).size, 0);
    await cloneDisk(await sparse('hole', []), join(dir, 'hole-copy'));
    assert.equal((await stat(join(dir, 'hole-copy'))).blocks, 0);
  });

  it('never writes over a file and leaves none when it fails', async () => {
    const from = await sparse('again', [[0, 'x']]);
    await writeFile(join(dir, 'mine'), 'mine');
    await assert.rejects(cloneDisk(from, join(dir, 'mine')), { code: 'EEXIST' });
    assert.equal(await readFile(join(dir, 'mine'), 'utf8'), 'mine');
    await assert.rejects(cloneDisk(join(dir, 'absent'), join(dir, 'none')), { code: 'ENOENT' });
    await assert.rejects(stat(join(dir, 'none')), { code: 'ENOENT' });
  });
});
