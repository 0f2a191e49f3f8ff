// Real mounts: what other processes see of a pager that runs in this one. Never read the mount from this process itself:
// a thread of ours that waits for our own answer can keep it from being given.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { silentLog } from '../../shared/log.ts';
import type { ImageName } from '../snapshot/manifest.ts';
import { flatRuns } from '../snapshot/working-set.ts';
import { canMountFuse, mountsOn } from './fuse-mount.ts';
import { TestReader, testImage } from './image-for-tests.ts';
import { Pager, type PagerLimits } from './pager.ts';
import type { PagerEvent } from './pager-protocol.ts';

const run = promisify(execFile);
const ability = await canMountFuse();
const skip = ability.ok ? false : ability.reason;
const pages = 2048;
const ref = { snapshotId: 'snap-000000000000000000000001', image: 'memory' as ImageName };
const from = { manifestPath: 'unused' };

/** Maps the file privately, as a VMM does, then prints what the expressions give. */
const mapped = (path: string, script: string) =>
  run('python3', [
    '-c',
    `import mmap, os, sys
f = os.open(${JSON.stringify(path)}, os.O_RDWR)
m = mmap.mmap(f, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
${script}`,
  ]);

describe('pager', { skip }, () => {
  let dir: string;
  let mountDir: string;
  let reader: TestReader;
  let events: PagerEvent[];
  let pager: Pager;
  const made = testImage(pages);
  const expectedPath = () => join(dir, 'expected');

  const startPager = async (limits: Partial<PagerLimits> = {}) => {
    events = [];
    reader = new TestReader(made);
    pager = await Pager.start({
      mountDir,
      load: async () => ({ image: made.image, frames: made.frames, reader }),
      onEvent: (event) => events.push(event),
      log: silentLog,
      limits,
    });
  };

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-pager-'));
    mountDir = join(dir, 'mnt');
    await writeFile(expectedPath(), made.content);
  });
  after(() => rm(dir, { recursive: true, force: true }));
  beforeEach(() => startPager());
  afterEach(async () => {
    await pager.close();
    assert.equal(await mountsOn(mountDir), 0);
  });

  it('serves the image byte for byte to several readers at once, reading each frame once', async () => {
    const { path } = await pager.add(ref, from);
    await Promise.all(Array.from({ length: 6 }, () => run('cmp', [path, expectedPath()])));
    const read = reader.reads.flatMap(({ frames }) => frames).sort((a, b) => a - b);
    assert.deepEqual(read, [...made.frames.segment.keys()]);
  });

  it('lists what it serves, in a directory for its owner only', async () => {
    await pager.add(ref, from);
    const { stdout } = await run('ls', ['-l', mountDir]);
    assert.match(
      stdout,
      new RegExp(`^-rw-r--r-- 1 \\S+ \\S+ ${made.content.length} .*${ref.snapshotId}\\.memory$`, 'm'),
    );
    // Nobody else gets as far as the file, unless it is mounted for him: into the jail of a VMM.
    assert.equal((await stat(mountDir)).mode & 0o777, 0o500);
  });

  it('gives a private mapping the pages, lets it write to its own copies, and no page twice', async () => {
    const { path } = await pager.add(ref, from);
    const script =
      'm[5] = 7\nprint(m[5], m[4096], sum(m[i] == 0 for i in range(48 * 4096, 64 * 4096, 4096)))';
    assert.equal((await mapped(path, script)).stdout, '7 2 16\n');
    const readsBefore = reader.reads.length;
    assert.equal((await mapped(path, 'print(m[5], m[4096])')).stdout, '1 2\n');
    assert.equal(reader.reads.length, readsBefore, 'the second mapping found them in the page cache');
  });

  it('refuses every write and says who tried', async () => {
    const { path } = await pager.add(ref, from);
    const script = `
for what in (lambda: os.pwrite(f, b"x" * 4096, 0), lambda: os.ftruncate(f, 0), lambda: os.unlink(${JSON.stringify(path)})):
    try:
        what()
        print("written")
    except OSError as error:
        print(error.errno)
print(os.getpid())`;
    const lines = (await mapped(path, script)).stdout.split('\n');
    // EROFS, EROFS, and ENOSYS for what we do not know.
    assert.deepEqual(lines.slice(0, 3), ['30', '30', '38']);
    assert.deepEqual(events, [{ ...ref, event: 'write-refused', pid: Number(lines[3]) }]);
    await run('cmp', [path, expectedPath()]);
  });

  it('fails a read that the store cannot serve, with an event that names the snapshot; never with zeros', async () => {
    const { path } = await pager.add(ref, from);
    reader.failing.set('all', 'store-unavailable');
    await assert.rejects(
      run('dd', [`if=${path}`, 'of=/dev/null', 'bs=4096', 'count=1']),
      /Input\/output error/,
    );
    assert.deepEqual(
      { ...events[0], detail: '' },
      { ...ref, event: 'pages-failed', code: 'store-unavailable', detail: '' },
    );
    await assert.rejects(mapped(path, 'print(m[0])'), { signal: 'SIGBUS' });
    reader.failing.clear();
    await run('cmp', [path, expectedPath()]);
  });

  it('quarantines a damaged frame and goes on serving the others', async () => {
    const { path } = await pager.add(ref, from);
    const firstFrame = made.frames.segment.length - 1;
    reader.failing.set(firstFrame, 'snapshot-damaged');
    await assert.rejects(mapped(path, 'print(m[0])'), { signal: 'SIGBUS' });
    reader.failing.clear();
    await assert.rejects(mapped(path, 'print(m[0])'), { signal: 'SIGBUS' });
    assert.equal(events.filter(({ event }) => event === 'frame-quarantined').length, 1);
    assert.ok(events.some((event) => event.event === 'pages-failed' && event.code === 'snapshot-damaged'));
    assert.equal((await mapped(path, 'print(m[16 * 4096])')).stdout, '17\n');
  });

  it('lets a reader that waits for a store without end be killed', async () => {
    const { path } = await pager.add(ref, from);
    const { promise, resolve } = Promise.withResolvers<void>();
    reader.held = promise;
    const child = execFile('python3', [
      '-c',
      `import mmap, os
f = os.open(${JSON.stringify(path)}, os.O_RDWR)
m = mmap.mmap(f, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
m[0]`,
    ]);
    const gone = new Promise((done) => child.once('exit', (_, signal) => done(signal)));
    while (reader.reads.length === 0) await new Promise(setImmediate);
    child.kill('SIGKILL');
    assert.equal(await gone, 'SIGKILL');
    resolve();
  });

  it('answers others while one read waits', async () => {
    const { path } = await pager.add(ref, from);
    const other = await pager.add({ ...ref, image: 'disk' }, { plainPath: expectedPath() });
    const { promise, resolve } = Promise.withResolvers<void>();
    reader.held = promise;
    const waiting = run('cmp', [path, expectedPath()]);
    while (reader.reads.length === 0) await new Promise(setImmediate);
    await run('cmp', [other.path, expectedPath()]);
    resolve();
    await waiting;
  });

  it('records first touches in order, and prefetches them by few reads so that nobody asks again', async () => {
    const touching = [1600, 64, 704].map((page) => `m[${page} * 4096]`).join('\n');
    await pager.close();
    await startPager({ maxReadaheadBytes: 4096 });
    const { path } = await pager.add(ref, from, true);
    await mapped(path, touching);
    const recording = pager.recording(ref);
    assert.deepEqual(flatRuns(recording), [1600, 1, 64, 1, 704, 1]);
    await pager.close();
    await startPager();
    const again = await pager.add(ref, from);
    await run('stat', [again.path]);
    assert.deepEqual(await pager.prefetch(ref, recording), { frames: 3, failed: 0 });
    const readsBefore = reader.reads.length;
    await mapped(again.path, touching);
    assert.equal(reader.reads.length, readsBefore);
    assert.equal(
      pager.stats().files[0]?.reads,
      0,
      'the pages were in the page cache before they were touched',
    );
  });

  it('refuses to remove a file that is mapped, and removes it afterwards for good', async () => {
    const { path } = await pager.add(ref, from);
    const child = execFile('python3', [
      '-c',
      `import os, sys; f = os.open(${JSON.stringify(path)}, os.O_RDWR); print(1, flush=True); sys.stdin.read()`,
    ]);
    await new Promise((opened) => child.stdout?.once('data', opened));
    assert.equal(pager.opens, 1);
    await assert.rejects(pager.remove(ref), { code: 'conflict' });
    const gone = new Promise((done) => child.once('exit', done));
    child.stdin?.end();
    await gone;
    while (pager.opens > 0) await new Promise(setImmediate);
    await pager.remove(ref);
    await assert.rejects(run('cat', [path]), /No such file/);
    await pager.add(ref, { plainPath: join(import.meta.dirname, 'pager.test.ts') });
    assert.match((await run('cat', [path])).stdout, /^\/\/ Real mounts/);
  });

  it('keeps a whole, sparse, plain copy and goes on serving from it', async () => {
    const keepPath = join(dir, 'kept');
    const { path } = await pager.add(ref, { manifestPath: '', keepPath });
    await mapped(path, 'm[0]');
    assert.ok(pager.complete(ref) > 0);
    while (!events.some(({ event }) => event === 'kept')) await new Promise(setImmediate);
    assert.ok((await readFile(keepPath)).equals(made.content));
    assert.ok((await stat(keepPath)).blocks * 512 < made.content.length);
    const readsBefore = reader.reads.length;
    await run('cmp', [path, expectedPath()]);
    assert.equal(reader.reads.length, readsBefore);
    assert.ok(!(await readdir(dir)).includes('kept.partial'));
  });

  it('goes on serving when the disk is too full for the plain copy, and says so', async () => {
    const fullDir = join(dir, 'full');
    await mkdir(fullDir);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'none', fullDir]);
    try {
      const { path } = await pager.add(ref, { manifestPath: '', keepPath: join(fullDir, 'kept') });
      await run('cmp', [path, expectedPath()]);
      const [event] = events;
      assert.match(event?.event === 'keep-failed' ? event.detail : '', /ENOSPC/);
      assert.equal(events.length, 1);
      assert.deepEqual(await readdir(fullDir), []);
    } finally {
      await run('umount', ['-l', fullDir]);
    }
  });

  it('holds memory to its limit while everything is read', async () => {
    await pager.close();
    await startPager({ cacheBytes: 256 * 1024 });
    const { path } = await pager.add(ref, from);
    await Promise.all([run('cmp', [path, expectedPath()]), run('cmp', [path, expectedPath()])]);
    assert.ok(pager.stats().cacheBytes <= 256 * 1024);
  });
});
