// Clones whose memory is served by the pager out of a store: they answer, what goes wrong ends them with a reason, and
// the pages that the first ones needed make the next cold restore fast.
import assert from 'node:assert/strict';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { request } from 'undici';
import { canMountFuse } from '../../pool/pagefs/fuse-mount.ts';
import type { PagerClient } from '../../pool/pagefs/pager-client.ts';
import type { PagerEvent } from '../../pool/pagefs/pager-protocol.ts';
import { mergedOrder, pagesOf, type Recording } from '../../pool/snapshot/working-set.ts';
import type { Vm } from '../../pool/vm.ts';
import { openPagedWorld, type PagedWorld, segmentFiles } from './paged-world.ts';

const ability = await canMountFuse();
const imagePages = 65_536;
/** So far that the trips to the store decide, and not how busy this machine is. */
const farAwayMs = 400;

describe('clones over pagefs', { skip: ability.ok ? false : ability.reason }, () => {
  let world: PagedWorld;
  let snapshotId: string;
  let storedBytes: number;
  const recordings: Recording[] = [];

  before(async () => {
    world = await openPagedWorld();
    const handler = `export default { fetch: () => new Response('hello') };`;
    snapshotId = await world.build({ name: 'hello', runtime: 'node' }, { 'index.mjs': handler });
    for (let time = 0; time < 2; time++) recordings.push(await world.recordLocally(snapshotId, ask));
    storedBytes = await world.publish(snapshotId, mergedOrder({ imagePages, recordings }));
  });
  after(() => world?.close());

  async function ask(vm: Vm): Promise<void> {
    const response = await request(`http://${vm.runner!.host}:${vm.runner!.port}/`);
    assert.equal(await response.body.text(), 'hello');
  }

  /** A clone restored and asked once. @returns milliseconds to its answer. */
  async function answer(): Promise<number> {
    const startMs = performance.now();
    const vm = await world.restore(snapshotId);
    await ask(vm);
    const elapsedMs = performance.now() - startMs;
    await vm.destroy();
    return elapsedMs;
  }

  async function fetchedBytes(client: PagerClient): Promise<number> {
    const series = (await client.metrics()) as {
      name: string;
      values: { value: number; labels: { op?: string } }[];
    }[];
    const bytes = series.find(({ name }) => name === 'thaw_store_bytes_total')?.values ?? [];
    return bytes.reduce((sum, { value, labels }) => sum + (labels.op === 'get' ? value : 0), 0);
  }

  it('a clone restores from the store, its touches are recorded, and the next one needs no page again', async (t) => {
    const client = await world.startPager();
    const ref = await world.page(client, snapshotId, { record: true });
    await answer();
    const touched = pagesOf(await client.recording(ref));
    const { reads } = (await client.stats()).files[0]!;
    t.diagnostic(`${touched} pages touched, ${reads} reads; ${recordings.map(pagesOf)} in local clones`);
    assert.ok(touched > 1000 && touched < imagePages / 4);
    await answer();
    const more = (await client.stats()).files[0]!.reads - reads;
    assert.ok(more < reads / 10, `${more} more reads`);
  });

  it('with its working set a clone answers at least three times sooner from a store that is far away', async (t) => {
    const blind = await world.startPager({ firstByteMs: farAwayMs });
    await world.page(blind, snapshotId);
    const blindMs = await answer();
    const blindBytes = await fetchedBytes(blind);
    const client = await world.startPager({ firstByteMs: farAwayMs });
    const ref = await world.page(client, snapshotId);
    const prefetched = client.prefetch(ref, mergedOrder({ imagePages, recordings }));
    const knowingMs = await answer();
    assert.equal((await prefetched).failed, 0);
    const bytes = await fetchedBytes(client);
    t.diagnostic(
      `without ${blindMs.toFixed(0)} ms, ${blindBytes} bytes; with ${knowingMs.toFixed(0)} ms, ${bytes} bytes of ${storedBytes}`,
    );
    assert.ok(bytes < 0.15 * imagePages * 4096, `${bytes} bytes`);
    assert.ok(knowingMs * 3 < blindMs, `${knowingMs} ms with, ${blindMs} ms without`);
  });

  it('becomes a plain file, equal to the original, when all of it has come', async () => {
    const client = await world.startPager();
    const keepPath = join(world.dataDir, 'whole.pages');
    const kept = new Promise<PagerEvent>((resolve) => client.onEvent(resolve));
    const ref = await world.page(client, snapshotId, { keepPath });
    await answer();
    await client.complete(ref);
    assert.deepEqual(await kept, { ...ref, event: 'kept', path: keepPath });
    assert.ok((await readFile(keepPath)).equals(await readFile(world.pagesPathOf(snapshotId))));
    assert.ok((await stat(keepPath)).blocks * 512 < imagePages * 4096);
  });

  it('row 9: a clone whose pager is killed ends within a second, and the pager that follows serves the next one', async () => {
    const client = await world.startPager();
    await world.page(client, snapshotId);
    const vm = await world.restore(snapshotId);
    void client.lost.then(() => vm.destroy());
    process.kill((await client.hello()).pid, 'SIGKILL');
    const killedMs = performance.now();
    assert.match(await vm.ended, /VMM ended/);
    assert.ok(performance.now() - killedMs < 1_000, `${performance.now() - killedMs} ms`);
    assert.equal((await client.lost).code, 'pager-lost');
    await world.page(await world.startPager(), snapshotId);
    await answer();
  });

  it('row 7: a corrupt store ends the restore with a reason, and not one byte of it reaches the guest', async () => {
    const client = await world.startPager();
    await world.page(client, snapshotId);
    const events: PagerEvent[] = [];
    client.onEvent((event) => events.push(event));
    const files = await segmentFiles(world.storeDir);
    const whole = await Promise.all(files.map((file) => readFile(file)));
    try {
      for (const [index, file] of files.entries()) await writeFile(file, flipped(whole[index]!));
      await assert.rejects(world.restore(snapshotId), { code: 'restore-failed' });
    } finally {
      for (const [index, file] of files.entries()) await writeFile(file, whole[index]!);
    }
    const failure = events.find((event) => event.event === 'pages-failed');
    assert.ok(failure?.event === 'pages-failed');
    assert.deepEqual([failure.snapshotId, failure.code], [snapshotId, 'snapshot-damaged']);
  });
});

/** One bit in every KiB. */
function flipped(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  for (let at = 0; at < copy.length; at += 1024) copy[at]! ^= 1;
  return copy;
}
