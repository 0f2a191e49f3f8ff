// The pager as a process of its own: what a node sees of it when it, or the node, dies.
import assert from 'node:assert/strict';
import { type ChildProcess, execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { silentLog } from '../../shared/log.ts';
import type { ImageName } from '../snapshot/manifest.ts';
import { canMountFuse, mountsOn } from './fuse-mount.ts';
import { testImage } from './image-for-tests.ts';
import { endPager, openPager, type PagerProcessOptions } from './pager-process.ts';

const run = promisify(execFile);
const ability = await canMountFuse();
const pages = 512;
const ref = { snapshotId: 'snap-000000000000000000000001', image: 'memory' as ImageName };
const from = { manifestPath: String(pages) };

describe('pager process', { skip: ability.ok ? false : ability.reason }, () => {
  let dir: string;
  let options: PagerProcessOptions;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-pager-process-'));
    options = {
      dir: join(dir, 'pager'),
      mountDir: join(dir, 'mnt'),
      program: join(import.meta.dirname, 'pager-for-tests.ts'),
      settings: {},
      log: silentLog,
    };
    await writeFile(join(dir, 'expected'), testImage(pages).content);
  });
  afterEach(async () => {
    await endPager(options);
    assert.equal(await mountsOn(options.mountDir), 0);
  });
  after(() => rm(dir, { recursive: true, force: true }));

  const check = (path: string) => run('cmp', [path, join(dir, 'expected')]);
  const pidOf = async () =>
    (JSON.parse(await readFile(join(options.dir, 'vmm.pid'), 'utf8')) as { pid: number }).pid;

  /** A process that maps the file, has touched its first page, and touches a far one when it is told to. */
  async function mapping(path: string): Promise<{ child: ChildProcess; ended: Promise<string | null> }> {
    const script = `import mmap, os, sys
f = os.open(${JSON.stringify(path)}, os.O_RDWR)
m = mmap.mmap(f, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
print(m[0], flush=True)
sys.stdin.readline()
print(m[400 * 4096], flush=True)
sys.stdin.readline()`;
    const child = execFile('python3', ['-c', script]);
    const ended = new Promise<string | null>((resolve) => child.once('exit', (_, signal) => resolve(signal)));
    await new Promise((touched) => child.stdout?.once('data', touched));
    return { child, ended };
  }

  it('serves, counts, and ends in order when nobody uses it', async () => {
    const { client, adopted } = await openPager(options);
    assert.equal(adopted, false);
    const path = await client.add(ref, from);
    await check(path);
    const stats = await client.stats();
    assert.equal(stats.files[0]?.sizeBytes, pages * 4096);
    assert.ok(stats.files[0]!.reads > 0);
    const series = (await client.metrics()) as { name: string }[];
    assert.ok(series.some(({ name }) => name === 'thaw_pagefs_read_seconds'));
    await client.remove(ref);
    await client.stop();
    assert.equal(await mountsOn(options.mountDir), 0);
  });

  it('passes errors with their codes', async () => {
    const { client } = await openPager(options);
    await client.add(ref, from);
    await assert.rejects(client.add(ref, from), { code: 'conflict' });
    await assert.rejects(client.recording(ref), { code: 'conflict' });
    await assert.rejects(client.prefetch({ ...ref, image: 'disk' }, []), { code: 'template-not-found' });
    await assert.rejects(client.add({ ...ref, image: 'disk' }, { plainPath: '/nonexistent' }), {
      code: 'snapshot-damaged',
    });
    client.close();
  });

  it('outlives its node, and the next one adopts it with its files', async () => {
    const first = await openPager(options);
    const path = await first.client.add(ref, from);
    const { child, ended } = await mapping(path);
    first.client.close();
    const second = await openPager(options);
    assert.equal(second.adopted, true);
    assert.equal((await second.client.stats()).files[0]?.opens, 1);
    child.stdin?.write('\n');
    await new Promise((touched) => child.stdout?.once('data', touched));
    await assert.rejects(second.client.stop(), { code: 'conflict' });
    child.kill('SIGKILL');
    await ended;
    second.client.close();
  });

  it('row 9: is noticed within a second when it is killed; its readers fail instead of hanging; the next one remounts', async () => {
    const { client } = await openPager(options);
    const { child, ended } = await mapping(await client.add(ref, from));
    const waiting = client.prefetch(ref, [{ page: 0, pageCount: 1 }]);
    await waiting;
    process.kill(await pidOf(), 'SIGKILL');
    const killedMs = performance.now();
    const loss = await client.lost;
    assert.ok(performance.now() - killedMs < 1_000, `${performance.now() - killedMs} ms`);
    assert.equal(loss.code, 'pager-lost');
    await assert.rejects(client.stats(), { code: 'pager-lost' });
    child.stdin?.write('\n');
    assert.equal(await ended, 'SIGBUS');
    const next = await openPager(options);
    assert.equal(next.adopted, false);
    await check(await next.client.add(ref, from));
    assert.equal(await mountsOn(options.mountDir), 1);
    next.client.close();
  });

  it('row 9: is ended when it hangs, so that its readers do not hang with it', async () => {
    const { client } = await openPager({ ...options, healthEveryMs: 50, healthTimeoutMs: 200 });
    const { child, ended } = await mapping(await client.add(ref, from));
    process.kill(await pidOf(), 'SIGSTOP');
    child.stdin?.write('\n');
    const { detail } = await client.lost;
    assert.match(detail, /does not answer/);
    assert.equal(await ended, 'SIGBUS');
  });

  it('ends itself when its node does not come back and nobody uses it', async () => {
    const { client } = await openPager({ ...options, settings: { orphanTimeoutMs: 50 } });
    const pid = await pidOf();
    client.close();
    while ((await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z')).split(') ')[1]?.[0] !== 'Z')
      await new Promise(setImmediate);
    assert.equal(await mountsOn(options.mountDir), 0);
  });

  it('says why it cannot start', async () => {
    await assert.rejects(openPager({ ...options, mountDir: join(dir, 'expected', 'mnt') }), {
      code: 'internal',
      message: /ENOTDIR|EEXIST/,
    });
  });
});
