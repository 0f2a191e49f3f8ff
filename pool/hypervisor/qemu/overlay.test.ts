// Tests that overlays made from bytes are what qemu-img itself reads: right backing file, right size, many from one.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createOverlay } from './overlay.ts';

const missing = spawnSync('qemu-img', ['--version']).error ? 'qemu-img is not installed' : false;

describe('qcow2 overlay', { skip: missing }, () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-overlay-'));
    await writeFile(join(dir, 'blank'), '');
    await truncate(join(dir, 'blank'), 64 * 1024 * 1024);
  });
  after(() => rm(dir, { recursive: true, force: true }));

  const info = (path: string) =>
    JSON.parse(execFileSync('qemu-img', ['info', '--output=json', path], { encoding: 'utf8' })) as Record<
      string,
      unknown
    >;

  it('names its raw backing disk and has its size', async () => {
    const path = join(dir, 'first');
    await createOverlay(path, join(dir, 'blank'), 'raw');
    const facts = info(path);
    assert.equal(facts['full-backing-filename'], join(dir, 'blank'));
    assert.equal(facts['backing-filename-format'], 'raw');
    assert.equal(facts['virtual-size'], 64 * 1024 * 1024);
  });

  it('stacks: an overlay of an overlay reads what the lower one holds, and is clean', async () => {
    const [lower, upper] = [join(dir, 'lower'), join(dir, 'upper')];
    await createOverlay(lower, join(dir, 'blank'), 'raw');
    execFileSync('qemu-io', ['-c', 'write -P 0x5a 1M 4k', lower], { stdio: 'pipe' });
    await createOverlay(upper, lower, 'qcow2');
    const read = execFileSync('qemu-io', ['-c', 'read -P 0x5a 1M 4k', upper], { encoding: 'utf8' });
    assert.doesNotMatch(read, /verification failed/);
    execFileSync('qemu-img', ['check', '-q', upper]);
  });

  it('refuses a backing file that is no qcow2 disk', async () => {
    await assert.rejects(createOverlay(join(dir, 'bad'), join(dir, 'blank'), 'qcow2'), {
      code: 'hypervisor-failed',
    });
  });
});
