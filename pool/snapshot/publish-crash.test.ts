import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { allKeys } from '../store/blob-store.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { crashCaptures, testId, testImage, testKey, testPage } from './capture-for-tests.ts';
import { Catalogue } from './catalogue.ts';
import { pageBytes } from './extents.ts';
import { FrameReader, storeTier } from './frame-reader.ts';
import { collect } from './gc.ts';
import { materialise } from './materialise-image.ts';
import { Publisher } from './publish.ts';

const program = fileURLToPath(new URL('./crash-for-tests.ts', import.meta.url));
const maxChanges = 20;

describe('a publish that is killed', () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-crash-'));
  });
  after(() => rm(dir, { recursive: true, force: true }));

  const worldOf = (name: string) => ({
    storeDir: join(dir, name, 'store'),
    spoolDir: join(dir, name, 'spool'),
    captureDir: join(dir, name, 'captures'),
  });

  /** @returns whether it was killed on the way. */
  const publishAndDie = async (name: string, step: number, when: string) => {
    const { storeDir, spoolDir, captureDir } = worldOf(name);
    const args = [program, storeDir, spoolDir, captureDir, String(step), when];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'inherit'] });
    const [code, signal] = await once(child, 'close');
    assert.ok(signal === 'SIGKILL' || code === 0, `${code} ${signal}`);
    return signal === 'SIGKILL';
  };

  /** Both snapshots again, with the files that the dead process had: it goes on from whatever is there. */
  const publishAgain = async (name: string, store: DirectoryStore) => {
    const { spoolDir, captureDir } = worldOf(name);
    const options = { store, clusterKey: testKey, spoolDir, threads: 1, reserveBytes: 0 };
    const publisher = await Publisher.open(options);
    const { parent, child } = await crashCaptures(captureDir);
    await publisher.publish(parent);
    await publisher.publish(child);
    await publisher.close();
  };

  const contents = () => {
    const parent = testImage(1).memory;
    const child = Buffer.from(parent);
    for (const page of [0, 1, 2, 500]) testPage(5_000 + page).copy(child, page * pageBytes);
    return new Map([
      [testId(1), parent],
      [testId(2), child],
    ]);
  };

  /** Every snapshot that can be seen is whole; @returns how many. */
  const assertWhole = async (store: DirectoryStore) => {
    const catalogue = new Catalogue({ store, clusterKey: testKey });
    const { snapshots, unreadable } = await catalogue.list();
    assert.deepEqual(unreadable, []);
    for (const { snapshotId } of snapshots) {
      const manifest = await catalogue.load(snapshotId);
      const reader = new FrameReader({ manifest, tiers: [storeTier(store)] });
      const path = join(dir, 'memory');
      await materialise(manifest, 'memory', reader, path);
      assert.ok((await readFile(path)).equals(contents().get(snapshotId)!));
      await rm(path);
    }
    return snapshots.length;
  };

  it('row 22: at any of its changes leaves whole snapshots and garbage that is collected', async () => {
    const seen: number[] = [];
    for (let step = -1, killed = true; killed; step++) {
      assert.ok(step < maxChanges, 'it comes to its end at last');
      const name = `step-${step}`;
      killed = await (step < 0 ? publishAndDie(name, 0, 'before') : publishAndDie(name, step, 'after'));
      const store = await DirectoryStore.open(worldOf(name).storeDir);
      const whole = await assertWhole(store);
      seen.push(whole);
      // The pin of a dead publisher runs out in time; an operator's collection need not wait for that.
      for await (const pin of allKeys(store, 'pins/')) await store.delete(pin);
      const collected = await collect(store, testKey, { graceMs: 0 });
      assert.deepEqual(collected.unreadable, []);
      const segments = await Array.fromAsync(allKeys(store, 'segments/'));
      assert.equal(segments.length, whole, 'one segment a snapshot, no other is left');
      await publishAgain(name, store);
      assert.equal(await assertWhole(store), 2);
    }
    assert.deepEqual(
      seen,
      [...seen].sort((a, b) => a - b),
    );
    assert.deepEqual([...new Set(seen)], [0, 1, 2]);
  });
});
