import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, open, readdir, rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { DirectoryStore } from '../store/directory-store.ts';
import { testImage, testKey, testPage, wholeCapture } from './capture-for-tests.ts';
import { Catalogue } from './catalogue.ts';
import { sparseFileSource } from './image-source.ts';
import { type LocalCapture, Publisher } from './publish.ts';

const run = promisify(execFile);
const mayMount = process.getuid?.() === 0 ? {} : { skip: 'mounting a small file system takes root' };

describe('publishing within its limits', () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-limits-'));
  });
  after(() => rm(dir, { recursive: true, force: true }));

  const withSmallDisk = async (name: string, work: (path: string) => Promise<void>) => {
    const path = join(dir, name);
    await mkdir(path);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', path]);
    try {
      await work(path);
    } finally {
      await run('umount', ['--lazy', path]);
    }
  };

  it('keeps the event loop free: p99 of its delay under 20 ms', async () => {
    const capture = await bigCapture(join(dir, 'big'), 256);
    const store = await DirectoryStore.open(join(dir, 'store-big'));
    const publisher = await Publisher.open({ store, clusterKey: testKey, spoolDir: join(dir, 'spool-big') });
    const delay = monitorEventLoopDelay({ resolution: 1 });
    const startMs = performance.now();
    delay.enable();
    const { manifest, pages } = await publisher.publish(capture);
    delay.disable();
    await publisher.close();
    const p99Ms = delay.percentile(99) / 1e6;
    const tookMs = performance.now() - startMs;
    const part = manifest.addedBytes / capture.memory.sizeBytes;
    console.log(
      `256 MiB published in ${tookMs.toFixed(0)} ms: ${pages.stored} pages stored in ${(part * 100).toFixed(1)} % of RAM; ` +
        `event loop delay p99 ${p99Ms.toFixed(1)} ms, n = ${delay.count}`,
    );
    assert.ok(delay.count > 50, 'it was looked at while it ran');
    assert.ok(p99Ms < 20, `${p99Ms} ms`);
  });

  it('row 13: ends with a typed error and nothing left when the spool is full', mayMount, async () => {
    await withSmallDisk('full-spool', async (path) => {
      const store = await DirectoryStore.open(join(dir, 'store-a'));
      const image = testImage(1, 16);
      const capture = await wholeCapture(join(dir, 'capture-a'), 1, image);
      const spoolDir = join(path, 'spool');
      // A reserve that says nothing: the disk fills up while it is written to.
      const publisher = await Publisher.open({
        store,
        clusterKey: testKey,
        spoolDir,
        threads: 1,
        reserveBytes: -2e9,
      });
      await assert.rejects(publisher.publish(capture), { code: 'no-space' });
      await publisher.close();
      assert.deepEqual(await readdir(spoolDir), []);
      const { snapshots } = await new Catalogue({ store, clusterKey: testKey }).list();
      assert.deepEqual(snapshots, []);
    });
  });

  it('row 13: ends with a typed error and no half object when the store is full', mayMount, async () => {
    await withSmallDisk('full-store', async (path) => {
      const store = await DirectoryStore.open(path);
      const capture = await wholeCapture(join(dir, 'capture-b'), 1, testImage(1, 16));
      const spoolDir = join(dir, 'spool-b');
      const publisher = await Publisher.open({
        store,
        clusterKey: testKey,
        spoolDir,
        threads: 1,
        reserveBytes: 0,
      });
      await assert.rejects(publisher.publish(capture), { code: 'no-space' });
      await publisher.close();
      assert.deepEqual((await store.listKeys('')).entries, [], 'no object, no pin');
      const { bfree, blocks } = await statfs(path);
      assert.ok(bfree > blocks * 0.9, 'the space is given back');
      assert.deepEqual(await readdir(spoolDir), []);
    });
  });
});

/** A page file like a guest's: a third of its pages in use, in runs, some of them repeating. */
async function bigCapture(dir: string, memoryMb: number): Promise<LocalCapture> {
  const small = await wholeCapture(dir, 1, testImage(1, 1));
  const path = join(dir, 'big-pages');
  await using file = await open(path, 'w');
  await file.truncate(memoryMb * 1024 * 1024);
  const run = Buffer.alloc(1024 * 1024);
  for (let mb = 0; mb < memoryMb; mb += 3) {
    for (let page = 0; page < 256; page++) testPage(mb * 256 + page).copy(run, page * 4096);
    await file.write(run, 0, run.length, mb * 1024 * 1024);
  }
  const sizeBytes = memoryMb * 1024 * 1024;
  return { ...small, memoryMb, memory: { sizeBytes, sources: [await sparseFileSource(path)] } };
}
