// Tests layers against QEMU's own tools: what they write is read, what is written they read, and their check is clean.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFile, mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createOverlay } from '../qemu/overlay.ts';
import { backingOf, mergeLayers, rebaseLayer } from './layers.ts';
import { isLayer, readLayer } from './read-layer.ts';

const missing = spawnSync('qemu-img', ['--version']).error ? 'qemu-img is not installed' : false;
const diskMb = 2048;

describe('disk layers', { skip: missing }, () => {
  let dir: string;
  const at = (name: string) => join(dir, name);
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-layers-'));
    const blank = await open(at('blank'), 'w');
    await blank.truncate(diskMb * 1024 * 1024);
    await blank.write(Buffer.alloc(70_000, 0x11), 0, undefined, 5 * 1024 * 1024);
    await blank.close();
  });
  after(() => rm(dir, { recursive: true, force: true }));

  const io = (path: string, ...commands: string[]) => {
    const output = execFileSync('qemu-io', [...commands.flatMap((text) => ['-c', text]), path], {
      encoding: 'utf8',
    });
    assert.doesNotMatch(output, /failed|error/i);
  };
  const check = (path: string) => execFileSync('qemu-img', ['check', '-q', path]);
  const equal = (a: string, b: string) => execFileSync('qemu-img', ['compare', '-q', a, b]);
  const overlay = async (name: string, lower: string, format: 'raw' | 'qcow2') => {
    await createOverlay(at(name), at(lower), format);
    return at(name);
  };

  it('merge with the upper one on top, zeros and discards included', async () => {
    const lower = await overlay('lower', 'blank', 'raw');
    io(lower, 'write -P 1 0 1M', 'write -P 2 900M 3M', 'write -P 3 1800M 64k', 'write -P 9 2047M 1M');
    const upper = await overlay('upper', 'lower', 'qcow2');
    io(upper, 'write -P 4 100k 4k', 'write -P 5 901M 64k', 'write -z 1800M 64k', 'write -P 6 1200M 10M');
    io(upper, 'write -z -u 5M 64k', 'discard 0 64k');
    await mergeLayers(at('merged'), lower, upper);
    check(at('merged'));
    equal(at('merged'), upper);
    assert.deepEqual(await backingOf(at('merged')), { path: at('blank'), format: 'raw' });
    io(at('merged'), 'read -P 4 100k 4k', 'read -P 0 1800M 64k', 'read -P 9 2047M 1M', 'read -P 0 5M 64k');
    // QEMU goes on writing in it as in one of its own.
    io(at('merged'), 'write -P 7 0 2M', 'write -P 8 1500M 40M', 'read -P 6 1200M 10M');
    check(at('merged'));
  });

  it('merge to the same disk at any depth, with one file below', async () => {
    let whole = await overlay('gen-0', 'blank', 'raw');
    io(whole, 'write -P 16 0 256k');
    await copyFile(whole, at('reference'));
    for (let depth = 1; depth <= 10; depth++) {
      const upper = await overlay(`up-${depth}`, `gen-${depth - 1}`, 'qcow2');
      const writes = [`write -P ${16 + depth} ${depth * 32}k 96k`, `write -P ${depth} ${depth * 150}M 200k`];
      io(upper, ...writes);
      io(at('reference'), ...writes);
      await mergeLayers(at(`gen-${depth}`), whole, upper);
      whole = at(`gen-${depth}`);
      assert.equal((await backingOf(whole))?.path, at('blank'));
    }
    check(whole);
    equal(whole, at('reference'));
  });

  it('hold more clusters than one block of reference counts covers', async () => {
    // In clusters of 4 KiB a block covers 8 MiB; the block and the tables count, too.
    const small = (name: string, lower: string, format: string) =>
      execFileSync('qemu-img', [
        ...['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', '-b', at(lower), '-F', format],
        at(name),
      ]);
    small('wide', 'blank', 'raw');
    for (const lengthKb of [8000, 8192, 40_000]) {
      io(at('wide'), `write -P 3 100M ${lengthKb}k`);
      small('wide-upper', 'wide', 'qcow2');
      io(at('wide-upper'), 'write -P 4 101M 1M');
      await mergeLayers(at('wide-merged'), at('wide'), at('wide-upper'));
      check(at('wide-merged'));
      equal(at('wide-merged'), at('wide-upper'));
      await rm(at('wide-merged'));
    }
  });

  it('stand over another name of the same file', async () => {
    await overlay('named', 'blank', 'raw');
    const longName = `${'x'.repeat(200)}-disk`;
    const upper = await overlay('over', 'named', 'qcow2');
    io(upper, 'write -P 7 1M 64k');
    for (const name of [longName, 'short']) {
      await copyFile(at('named'), at(name));
      await rebaseLayer(upper, at(name));
      assert.deepEqual(await backingOf(upper), { path: at(name), format: 'qcow2' });
      io(upper, 'read -P 7 1M 64k', 'read -P 17 5M 64k');
      check(upper);
    }
    await assert.rejects(rebaseLayer(upper, `/${'y'.repeat(2000)}`), { code: 'bad-config' });
  });

  it('are told from raw disks, and refused with features of others', async () => {
    assert.equal(await isLayer(at('blank')), false);
    assert.equal(await isLayer(await overlay('own', 'blank', 'raw')), true);
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', at('old'), '1M']);
    await assert.rejects(readLayer(at('old')), { code: 'hypervisor-failed', message: /version 2/ });
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', 'extended_l2=on', at('ext'), '1M']);
    await assert.rejects(readLayer(at('ext')), { code: 'hypervisor-failed', message: /features/ });
    await writeFile(at('noise'), Buffer.alloc(4096, 0x51));
    await assert.rejects(readLayer(at('noise')), { code: 'hypervisor-failed' });
    await assert.rejects(mergeLayers(at('x'), at('own'), at('ext')), { code: 'hypervisor-failed' });
  });
});
