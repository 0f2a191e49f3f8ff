// Clones whose memory is served by the pager out of a store: they answer, their touches are recorded, and what is damaged
// while they run never reaches them. What a working set is worth is measured by `bench cold`.
import assert from 'node:assert/strict';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { request } from 'undici';
import { canMountFuse } from '../../pool/pagefs/fuse-mount.ts';
import type { PagerEvent } from '../../pool/pagefs/pager-protocol.ts';
import { pagesOf } from '../../pool/snapshot/working-set.ts';
import type { Vm } from '../../pool/vm.ts';
import { openPagedWorld, type PagedWorld, segmentFiles } from './paged-world.ts';

const ability = await canMountFuse();
const imagePages = 65_536;

describe('clones over pagefs', { skip: ability.ok ? false : ability.reason }, () => {
  let world: PagedWorld;
  let snapshotId: string;

  before(async () => {
    world = await openPagedWorld();
    const handler = `export default { fetch: () => new Response('hello') };`;
    snapshotId = await world.build({ name: 'hello', runtime: 'node' }, { 'index.mjs': handler });
    await world.publish(snapshotId);
  });
  after(() => world?.close());

  async function ask(vm: Vm): Promise<void> {
    const response = await request(`http://${vm.runner!.host}:${vm.runner!.port}/`);
    assert.equal(await response.body.text(), 'hello');
  }

  /** A clone restored and asked once. */
  async function answer(): Promise<void> {
    const vm = await world.restore(snapshotId);
    await ask(vm);
    await vm.destroy();
  }

  it('a clone restores from the store, its touches are recorded, and the next one needs no page again', async (t) => {
    const client = await world.startPager();
    const ref = await world.page(client, snapshotId, { record: true });
    await answer();
    const touched = pagesOf(await client.recording(ref));
    const { reads } = (await client.stats()).files[0]!;
    t.diagnostic(`${touched} pages touched, ${reads} reads`);
    assert.ok(touched > 1000 && touched < imagePages / 4);
    await answer();
    const more = (await client.stats()).files[0]!.reads - reads;
    assert.ok(more < reads / 10, `${more} more reads`);
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
