// Owns the conformance suite of the blob store port: what every adapter must do, in the port's words.
// An adapter's test calls `describeStoreConformance` with a way to open an empty store.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { allBlobs, allKeys, type BlobStore, StoreError, type StoreFailure } from './blob-store.ts';

export interface StoreUnderTest {
  store: BlobStore;
  close(): Promise<void>;
}

const failsWith = (failure: StoreFailure) => (error: unknown) =>
  error instanceof StoreError && error.failure === failure;

export function describeStoreConformance(
  name: string,
  open: () => Promise<StoreUnderTest>,
  skip: string | false = false,
): void {
  describe(`blob store conformance: ${name}`, { skip }, () => {
    let under: StoreUnderTest;
    let store: BlobStore;
    let dir: string;
    let counter = 0;
    /** A key of this test alone. */
    const newKey = () => `conformance/object-${String(counter++).padStart(4, '0')}`;

    before(async () => {
      dir = await mkdtemp(join(tmpdir(), 'thaw-conformance-'));
      under = await open();
      store = under.store;
    });
    after(async () => {
      await under?.close();
      await rm(dir, { recursive: true, force: true });
    });

    it('gives back what was put, of any size', async () => {
      for (const sizeBytes of [0, 1, 4096, 100_001, 3 * 1024 * 1024]) {
        const key = newKey();
        const body = randomBytes(sizeBytes);
        assert.equal(await store.put(key, body), 'created');
        assert.ok((await store.get(key)).equals(body), `${sizeBytes} bytes`);
      }
    });

    it('leaves an object that is there as it is', async () => {
      const key = newKey();
      assert.equal(await store.put(key, Buffer.from('first')), 'created');
      assert.equal(await store.put(key, Buffer.from('second')), 'exists');
      assert.equal(String(await store.get(key)), 'first');
    });

    it('lets one of many puts at once win, whole', async () => {
      const key = newKey();
      const bodies = Array.from({ length: 8 }, (_, i) => Buffer.alloc(200_000, i));
      const outcomes = await Promise.all(bodies.map((body) => store.put(key, body)));
      assert.equal(outcomes.filter((outcome) => outcome === 'created').length, 1);
      const winner = bodies[outcomes.indexOf('created')]!;
      assert.ok((await store.get(key)).equals(winner));
    });

    it('reads ranges, and refuses those outside the object', async () => {
      const key = newKey();
      const body = randomBytes(10_000);
      await store.put(key, body);
      for (const [offsetBytes, sizeBytes] of [
        [0, 1],
        [9_999, 1],
        [1234, 4321],
        [0, 10_000],
      ] as const) {
        const bytes = await store.get(key, { range: { offsetBytes, sizeBytes } });
        assert.ok(bytes.equals(body.subarray(offsetBytes, offsetBytes + sizeBytes)));
      }
      for (const [offsetBytes, sizeBytes] of [
        [9_999, 2],
        [10_000, 1],
        [50_000, 10],
      ] as const)
        await assert.rejects(
          store.get(key, { range: { offsetBytes, sizeBytes } }),
          failsWith('out-of-range'),
          `${sizeBytes} at ${offsetBytes}`,
        );
      for (const range of [
        { offsetBytes: 0, sizeBytes: 0 },
        { offsetBytes: -1, sizeBytes: 5 },
        { offsetBytes: 0.5, sizeBytes: 5 },
      ])
        await assert.rejects(store.get(key, { range }), failsWith('invalid'));
    });

    it('streams whole objects and ranges', async () => {
      const key = newKey();
      const body = randomBytes(5 * 1024 * 1024);
      await store.put(key, body);
      assert.equal(await digestOf(await store.getStream(key)), sha256(body));
      const range = { offsetBytes: 1_000_000, sizeBytes: 2_000_000 };
      assert.equal(
        await digestOf(await store.getStream(key, { range })),
        sha256(body.subarray(1_000_000, 3_000_000)),
      );
    });

    it('ends a stream that its caller gives up, or never reads', async () => {
      const key = newKey();
      await store.put(key, randomBytes(4 * 1024 * 1024));
      const controller = new AbortController();
      const stream = await store.getStream(key, { signal: controller.signal });
      await assert.rejects(async () => {
        for await (const _piece of stream) controller.abort();
      }, failsWith('aborted'));
      const unread = await store.getStream(key);
      const closed = new Promise((resolve) => unread.once('close', resolve));
      unread.destroy();
      await closed;
    });

    it('says that an object is absent', async () => {
      const key = newKey();
      await assert.rejects(store.get(key), failsWith('absent'));
      await assert.rejects(store.get(key, { range: { offsetBytes: 0, sizeBytes: 1 } }), failsWith('absent'));
      await assert.rejects(store.getStream(key), failsWith('absent'));
      assert.equal(await store.head(key), undefined);
    });

    it('tells size and time', async () => {
      const key = newKey();
      const startMs = Date.now();
      await store.put(key, randomBytes(777));
      const info = await store.head(key);
      assert.equal(info?.key, key);
      assert.equal(info?.sizeBytes, 777);
      // Object stores tell whole seconds.
      assert.ok(Math.abs((info?.modifiedAtMs ?? 0) - startMs) < 10_000);
    });

    it('puts files and parts of files, also big ones', async () => {
      const path = join(dir, 'source');
      const bytes = randomBytes(20 * 1024 * 1024 + 123);
      await writeFile(path, bytes);
      for (const [offsetBytes, sizeBytes] of [
        [0, bytes.length],
        [4096, 10_000],
        [1_000_001, 17 * 1024 * 1024],
      ] as const) {
        const key = newKey();
        assert.equal(await store.putFile(key, { path, offsetBytes, sizeBytes }), 'created');
        const expected = sha256(bytes.subarray(offsetBytes, offsetBytes + sizeBytes));
        assert.equal(await digestOf(await store.getStream(key)), expected);
        assert.equal(await store.putFile(key, { path, offsetBytes: 0, sizeBytes: 5 }), 'exists');
        assert.equal(await store.putFile(key, { path, offsetBytes: 0, sizeBytes: bytes.length }), 'exists');
        assert.equal((await store.head(key))?.sizeBytes, sizeBytes);
      }
    });

    it('has no object when a put was given up or its file ended early', async () => {
      const path = join(dir, 'short');
      await writeFile(path, randomBytes(12 * 1024 * 1024));
      const [tooShort, givenUp] = [newKey(), newKey()];
      await assert.rejects(
        store.putFile(tooShort, { path, offsetBytes: 0, sizeBytes: 13 * 1024 * 1024 }),
        failsWith('out-of-range'),
      );
      const controller = new AbortController();
      const put = store.putFile(
        givenUp,
        { path, offsetBytes: 0, sizeBytes: 12 * 1024 * 1024 },
        { signal: controller.signal },
      );
      setImmediate(() => controller.abort());
      await assert.rejects(put, failsWith('aborted'));
      assert.equal(await store.head(tooShort), undefined);
      assert.equal(await store.head(givenUp), undefined);
      await store.sweepUnfinished(0);
    });

    it('replaces, and readers meanwhile see one whole object', async () => {
      const key = newKey();
      const bodies = Array.from({ length: 6 }, (_, i) => Buffer.alloc(300_000, i + 1));
      await store.replace(key, bodies[0]!);
      const reads: Promise<Buffer>[] = [];
      for (const body of bodies) {
        const replaced = store.replace(key, body);
        reads.push(store.get(key), store.get(key));
        await replaced;
        assert.ok((await store.get(key)).equals(body), 'its own write is read');
      }
      for (const bytes of await Promise.all(reads))
        assert.ok(
          bodies.some((body) => body.equals(bytes)),
          'one of the bodies, whole',
        );
    });

    it('deletes, and a second time without complaint', async () => {
      const key = newKey();
      await store.put(key, Buffer.from('x'));
      await store.delete(key);
      assert.equal(await store.head(key), undefined);
      await store.delete(key);
      assert.equal(await store.put(key, Buffer.from('y')), 'created');
    });

    it('lists by prefix, in byte order, page by page', async () => {
      const names = ['a-b', 'a/b', 'a/c/d', 'a/c.d', 'a.b', 'b', 'c/0', 'c/1', 'c/2', 'c/3', 'c/4'];
      const keys = names.map((name) => `listing/${name}`).sort();
      await Promise.all(keys.map((key) => store.put(key, Buffer.from(key))));
      await store.put('listing-other/x', Buffer.from('x'));
      assert.deepEqual(await collect(allKeys(store, 'listing/')), keys);
      const paged: string[] = [];
      for (let after: string | undefined; ; ) {
        const page = await store.listKeys('listing/', { limit: 3, ...(after ? { after } : {}) });
        assert.ok(page.entries.length <= 3);
        paged.push(...page.entries);
        if (page.next === undefined) break;
        after = page.next;
      }
      assert.deepEqual(paged, keys);
      const after = 'listing/a/c.d';
      const rest = await store.listKeys('listing/', { after });
      assert.deepEqual(rest.entries, keys.slice(keys.indexOf(after) + 1));
      const blobs = await collect(allBlobs(store, 'listing/c/'));
      assert.deepEqual(
        blobs.map(({ key, sizeBytes }) => [key, sizeBytes]),
        [0, 1, 2, 3, 4].map((i) => [`listing/c/${i}`, 11]),
      );
      assert.deepEqual((await store.list('nothing/')).entries, []);
    });

    it('refuses keys that could leave the store, before it is asked', async () => {
      const bad = [
        '',
        '/a',
        'a/',
        'a//b',
        '../a',
        'a/../b',
        '.hidden',
        'A',
        'a b',
        'a\0b',
        'ü',
        'a'.repeat(600),
      ];
      for (const key of bad) {
        const refused = failsWith('invalid');
        await assert.rejects(async () => store.put(key, Buffer.from('x')), refused, JSON.stringify(key));
        await assert.rejects(async () => store.get(key), refused);
        await assert.rejects(async () => store.getStream(key), refused);
        await assert.rejects(async () => store.head(key), refused);
        await assert.rejects(async () => store.delete(key), refused);
      }
      await assert.rejects(async () => store.list('a'), failsWith('invalid'));
      await assert.rejects(async () => store.list('', { limit: 0 }), failsWith('invalid'));
    });

    it('does nothing for a caller who has given up already', async () => {
      const key = newKey();
      const signal = AbortSignal.abort();
      await assert.rejects(store.put(key, Buffer.from('x'), { signal }), failsWith('aborted'));
      await assert.rejects(store.get(key, { signal }), failsWith('aborted'));
      await assert.rejects(store.getStream(key, { signal }), failsWith('aborted'));
      assert.equal(await store.head(key), undefined);
    });

    it('keeps whole objects when it sweeps what is unfinished', async () => {
      const key = newKey();
      await store.put(key, Buffer.from('whole'));
      await store.sweepUnfinished(0);
      assert.equal(String(await store.get(key)), 'whole');
    });
  });
}

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

async function digestOf(stream: AsyncIterable<Buffer>): Promise<string> {
  const hash = createHash('sha256');
  for await (const piece of stream) hash.update(piece);
  return hash.digest('hex');
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}
