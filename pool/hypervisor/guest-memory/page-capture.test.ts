// Tests capture and paste on a real process: what it changed, and only that, comes out and goes into another one.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { metrics } from '../../../shared/metrics.ts';
import type { PageDelta } from '../hypervisor.ts';
import { pasteIntoFile, pasteIntoProcess } from './delta-paste.ts';
import { pageBytes } from './mappings.ts';
import { MemoryOwner } from './memory-owner.ts';
import { PageCapture } from './page-capture.ts';

const pages = 4096;
const sizeBytes = pages * pageBytes;
const isWriteInPause = ({ labels }: { labels: object }) =>
  'kind' in labels && labels.kind === 'capture-write-in-pause';

describe('capture of changed pages', () => {
  let dir: string;
  let pagesPath: string;
  let original: Buffer;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-pages-'));
    pagesPath = join(dir, 'pages');
    original = Buffer.alloc(sizeBytes);
    for (let page = 0; page < pages; page++) original.writeUInt32LE(page * 7 + 1, page * pageBytes + 64);
    await writeFile(pagesPath, original);
  });
  after(() => rm(dir, { recursive: true, force: true }));

  const whole: [number, number][] = [[0, sizeBytes]];
  const captureOf = async (owner: MemoryOwner, name: string, whilePrepared = async () => {}) => {
    const deltaPath = join(dir, name);
    await using capture = await PageCapture.prepare(owner.pid, pagesPath);
    await whilePrepared();
    await using file = await open(deltaPath, 'wx');
    await capture.scan();
    await capture.copy(file);
    await capture.write();
    return capture.delta(deltaPath);
  };
  /** The page file as the delta changes it. */
  const overlaid = async (delta: PageDelta) => {
    const result = Buffer.from(original);
    const bytes = await readFile(delta.path);
    let position = 0;
    for (const run of delta.runs) {
      bytes.copy(result, run.offsetBytes, position, position + run.sizeBytes);
      position += run.sizeBytes;
    }
    assert.equal(position, bytes.length);
    return result;
  };
  const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

  it('holds what the process changed and nothing that it only read', async () => {
    await using owner = await MemoryOwner.start(pagesPath, whole);
    await owner.read(pages);
    await owner.dirty(10, 20);
    await owner.dirty(1000, 50, 2, 99);
    await owner.dirty(pages - 1, 1);
    const delta = await captureOf(owner, 'changed');
    const changedPages = delta.runs.reduce((sum, run) => sum + run.sizeBytes / pageBytes, 0);
    assert.equal(changedPages, 71);
    assert.equal(delta.runs.length, 52);
    assert.equal(sha256(await overlaid(delta)), await owner.digest());
    assert.equal(sha256(await readFile(pagesPath)), sha256(original));
  });

  it('is empty for a process that changed nothing', async () => {
    await using owner = await MemoryOwner.start(pagesPath, whole);
    await owner.read(100);
    const delta = await captureOf(owner, 'nothing');
    assert.deepEqual(delta.runs, []);
    assert.equal((await stat(delta.path)).size, 0);
  });

  it('follows each mapping’s own place in the file', async () => {
    const half = sizeBytes / 2;
    await using owner = await MemoryOwner.start(pagesPath, [
      [half, half],
      [0, half],
    ]);
    await owner.dirty(pages / 2 - 5, 10);
    await owner.dirty(3, 1);
    const delta = await captureOf(owner, 'halves');
    assert.deepEqual(delta.runs, [
      { offsetBytes: 3 * pageBytes, sizeBytes: pageBytes },
      { offsetBytes: (pages / 2 - 5) * pageBytes, sizeBytes: 10 * pageBytes },
    ]);
    assert.equal(sha256(await overlaid(delta)), await owner.digest());
  });

  it('goes into a fresh process and comes out of it again', async () => {
    await using owner = await MemoryOwner.start(pagesPath, whole);
    for (let round = 0; round < 3; round++) await owner.dirty(round * 700, 200, 3, round * 1000);
    const delta = await captureOf(owner, 'first');
    await using second = await MemoryOwner.start(pagesPath, whole);
    await pasteIntoProcess(second.pid, pagesPath, delta);
    assert.equal(await second.digest(), await owner.digest());
    const again = await captureOf(second, 'second');
    assert.deepEqual(again.runs, delta.runs);
    assert.deepEqual(await readFile(again.path), await readFile(delta.path));
    assert.equal(sha256(await readFile(pagesPath)), sha256(original));
  });

  it('becomes a page file of its own', async () => {
    await using owner = await MemoryOwner.start(pagesPath, whole);
    await owner.dirty(0, 333, 11, 5);
    const delta = await captureOf(owner, 'for-file');
    const copyPath = join(dir, 'copy');
    await writeFile(copyPath, original);
    await pasteIntoFile(copyPath, delta);
    assert.equal(sha256(await readFile(copyPath)), await owner.digest());
  });

  it('is whole though far more changed than there was room prepared for', async () => {
    await using owner = await MemoryOwner.start(pagesPath, whole);
    const inPause = async () => (await metrics.fallbacks.get()).values.find(isWriteInPause)?.value ?? 0;
    const before = await inPause();
    const delta = await captureOf(owner, 'overflow', () => owner.dirty(0, pages, 1, 4));
    assert.equal(await inPause(), before + 1);
    assert.deepEqual(delta.runs, [{ offsetBytes: 0, sizeBytes }]);
    assert.equal(sha256(await overlaid(delta)), await owner.digest());
  });

  it('works for several processes at once', async () => {
    const owners = await Promise.all(Array.from({ length: 6 }, () => MemoryOwner.start(pagesPath, whole)));
    const captures = owners.map(async (owner, index) => {
      await owner.dirty(index, 300, 4, index * 5000);
      const delta = await captureOf(owner, `parallel-${index}`);
      assert.equal(sha256(await overlaid(delta)), await owner.digest());
    });
    await Promise.all(captures);
    await Promise.all(owners.map((owner) => owner[Symbol.asyncDispose]()));
  });

  it('tells that the process is gone', async () => {
    const owner = await MemoryOwner.start(pagesPath, whole);
    const capture = await PageCapture.prepare(owner.pid, pagesPath);
    await owner[Symbol.asyncDispose]();
    await assert.rejects(capture.scan(), { code: 'hypervisor-failed' });
    await capture[Symbol.asyncDispose]();
    await assert.rejects(PageCapture.prepare(owner.pid, pagesPath), { code: 'hypervisor-failed' });
  });

  it('refuses a delta that does not fit the memory, or lacks bytes', async () => {
    await using owner = await MemoryOwner.start(pagesPath, whole);
    const path = join(dir, 'bad');
    await writeFile(path, Buffer.alloc(pageBytes));
    const beyond = { path, runs: [{ offsetBytes: sizeBytes, sizeBytes: pageBytes }] };
    await assert.rejects(pasteIntoProcess(owner.pid, pagesPath, beyond), { code: 'restore-failed' });
    const short = { path, runs: [{ offsetBytes: 0, sizeBytes: 4 * pageBytes }] };
    await assert.rejects(pasteIntoProcess(owner.pid, pagesPath, short), { message: /too short/ });
  });
});
