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
import { testId, testImage, testKey, testPage } from './capture-for-tests.ts';
import { Catalogue } from './catalogue.ts';
import { pageBytes } from './extents.ts';
import { FrameReader, storeTier } from './frame-reader.ts';
import { collect } from './gc.ts';
import { materialise } from './materialise.ts';

const program = fileURLToPath(new URL('./crash-for-tests.ts', import.meta.url));
const maxRequests = 60;

describe('a publish that is killed', () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-crash-'));
  });
  after(() => rm(dir, { recursive: true, force: true }));

  /** @returns the number of requests when it came to its end. */
  const publishIn = async (world: string, step: number, when: string) => {
    const args = [
      program,
      join(world, 'store'),
      join(world, 'spool'),
      join(world, 'captures'),
      String(step),
      when,
    ];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
    const [code, signal] = await once(child, 'close');
    if (signal === 'SIGKILL') return undefined;
    assert.equal(code, 0);
    return Number(output);
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

  for (const when of ['before', 'after'])
    it(`${when} any of its requests leaves whole snapshots and garbage that is collected`, async () => {
      const seen = new Set<number>();
      let kills = 0;
      let total: number | undefined;
      for (; total === undefined; kills++) {
        assert.ok(kills < maxRequests, 'it comes to its end at last');
        const world = join(dir, `${when}-${kills}`);
        total = await publishIn(world, kills, when);
        const store = await DirectoryStore.open(join(world, 'store'));
        const whole = await assertWhole(store);
        seen.add(whole);
        // The pin of a dead publisher runs out in time; an operator's collection need not wait for that.
        for await (const pin of allKeys(store, 'pins/')) await store.delete(pin);
        const collected = await collect(store, testKey, { graceMs: 0 });
        assert.deepEqual(collected.unreadable, []);
        const segments = await Array.fromAsync(allKeys(store, 'segments/'));
        assert.equal(segments.length, whole, 'one segment a snapshot, no other is left');
        await assertWhole(store);
        assert.equal((await collect(store, testKey, { graceMs: 0 })).segments, 0);
        if (total === undefined) {
          // Started again, it goes on from whatever is there.
          assert.ok(await publishIn(world, maxRequests, when));
          assert.equal(await assertWhole(store), 2);
        }
        await rm(world, { recursive: true });
      }
      assert.ok(kills > 10, `${kills} steps`);
      assert.deepEqual([...seen].sort(), [0, 1, 2]);
    });
});
