import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtemp, open, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { testPage } from './capture-for-tests.ts';
import { layerOfFlatDisk } from './flat-disk.ts';

const run = promisify(execFile);
const hasQemu = await run('qemu-img', ['--version']).then(
  () => true,
  () => false,
);
const mebibyte = 1024 * 1024;

describe('a layer of a flat disk', {
  skip: hasQemu ? false : 'qemu-img is not installed: apt-get install qemu-utils',
}, () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-flat-'));
  });
  after(() => rm(dir, { recursive: true, force: true }));

  async function disk(name: string, sizeBytes: number, pages: Record<number, Buffer>): Promise<string> {
    const path = join(dir, name);
    await writeFile(path, '');
    await truncate(path, sizeBytes);
    await using file = await open(path, 'r+');
    for (const [page, bytes] of Object.entries(pages)) await file.write(bytes, 0, 4096, Number(page) * 4096);
    return path;
  }

  it('reads as the flat disk did, where the empty one has data and where it has none', async () => {
    const empty = await disk('empty', 64 * mebibyte, { 0: testPage(1), 100: testPage(2), 900: testPage(3) });
    const flat = await disk('flat', 64 * mebibyte, { 0: testPage(1), 100: testPage(9), 5000: testPage(4) });
    const layer = join(dir, 'layer');
    await layerOfFlatDisk(flat, empty, layer);
    await run('qemu-img', ['check', '-q', layer]);
    const back = join(dir, 'back');
    await run('qemu-img', ['convert', '-O', 'raw', layer, back]);
    assert.ok((await readFile(back)).equals(await readFile(flat)));
    assert.ok((await stat(layer)).size < mebibyte, 'what is the same is not in it');
  });

  it('refuses a disk of another size', async () => {
    const empty = await disk('small', mebibyte, {});
    const flat = await disk('large', 2 * mebibyte, {});
    await assert.rejects(layerOfFlatDisk(flat, empty, join(dir, 'never')), { code: 'incompatible' });
  });
});
