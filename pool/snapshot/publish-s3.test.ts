import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { BlobStore } from '../store/blob-store.ts';
import { type FaultProxy, startFaultProxy } from '../store/fault-proxy-for-tests.ts';
import { openStore } from '../store/open-store.ts';
import { type S3ForTests, s3Missing, startS3, testCredentials } from '../store/s3-server-for-tests.ts';
import { testImage, testKey, wholeCapture } from './capture-for-tests.ts';
import { Catalogue } from './catalogue.ts';
import { FrameReader, storeTier } from './frame-reader.ts';
import { collect } from './gc.ts';
import type { Manifest } from './manifest.ts';
import { materialise } from './materialise-image.ts';
import { Publisher } from './publish.ts';

describe('a snapshot in S3, behind a network with faults', { skip: (await s3Missing()) ?? false }, () => {
  let dir: string;
  let s3: S3ForTests;
  let proxy: FaultProxy;
  let store: BlobStore;
  let publisher: Publisher;
  const image = testImage(1);
  let manifest: Manifest;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-publish-s3-'));
    s3 = await startS3();
    proxy = await startFaultProxy(s3.port);
    store = await openStore(`s3://${s3.bucket}/snapshots`, {
      s3Endpoint: proxy.endpoint,
      s3Credentials: testCredentials,
      breaker: { firstPauseMs: 50, maxPauseMs: 50 },
    });
    publisher = await Publisher.open({
      store,
      clusterKey: testKey,
      spoolDir: join(dir, 'spool'),
      reserveBytes: 0,
    });
  });
  after(async () => {
    await publisher.close();
    await store.close();
    await proxy.close();
    await s3.stop();
    await rm(dir, { recursive: true, force: true });
  });

  const catalogue = () => new Catalogue({ store, clusterKey: testKey });
  const memoryOf = async () => {
    const reader = new FrameReader({ manifest, tiers: [storeTier(store)] });
    const path = join(dir, 'memory');
    await materialise(manifest, 'memory', reader, path);
    const bytes = await readFile(path);
    await rm(path);
    return bytes;
  };

  it('is published and comes back, and a second publish of its content uploads no segment', async () => {
    const capture = await wholeCapture(join(dir, 'a'), 1, image);
    ({ manifest } = await publisher.publish(capture));
    assert.deepEqual(await catalogue().load(capture.snapshotId), manifest);
    assert.ok((await memoryOf()).equals(image.memory));
    const twin = await publisher.publish(await wholeCapture(join(dir, 'b'), 2, image));
    assert.ok(twin.uploadedBytes < 10_000, `${twin.uploadedBytes} bytes: the manifest`);
  });

  it('comes back over a slow network', async () => {
    proxy.set({ firstByteDelayMs: 100 });
    assert.ok((await memoryOf()).equals(image.memory));
    proxy.set({});
  });

  it('is refused, and nothing of it used, when bytes change on the way', async () => {
    // Beyond the headers of an answer: in the middle of a manifest and of a range of frames.
    proxy.set({ flipAtByte: 2_000 });
    await assert.rejects(catalogue().load(manifest.snapshotId), { code: 'snapshot-damaged' });
    await assert.rejects(memoryOf(), { code: 'snapshot-damaged' });
    proxy.set({});
    assert.ok((await memoryOf()).equals(image.memory));
  });

  it('is published whole or not at all when the network fails on the way', async () => {
    const capture = await wholeCapture(join(dir, 'c'), 3, testImage(3));
    await assert.rejects(
      publisher.publish(capture, { onStage: (stage) => stage === 'pin' && proxy.set({ refuse: true }) }),
      { code: 'store-unavailable' },
    );
    proxy.set({});
    // The breaker lets one through when its pause is over.
    for (let back = false; !back; )
      back = await store.head('lineage/index').then(
        () => true,
        () => false,
      );
    assert.equal(await catalogue().has(capture.snapshotId), false);
    await publisher.publish(capture);
    assert.equal(await catalogue().has(capture.snapshotId), true);
  });

  it('is collected when it was removed', async () => {
    const { snapshots } = await catalogue().list();
    for (const { snapshotId } of snapshots) await catalogue().remove(snapshotId);
    for (const pin of (await store.listKeys('pins/')).entries) await store.delete(pin);
    assert.equal((await collect(store, testKey, { graceMs: 0 })).segments, 2);
    assert.deepEqual((await store.listKeys('segments/')).entries, []);
  });
});
