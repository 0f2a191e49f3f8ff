import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, afterEach, before, describe, it } from 'node:test';
import { metrics } from '../../shared/metrics.ts';
import { type BlobStore, StoreError, type StoreFailure } from './blob-store.ts';
import { type FaultProxy, startFaultProxy } from './fault-proxy-for-tests.ts';
import { openStore } from './open-store.ts';
import { type S3ForTests, s3Missing, startS3, testCredentials } from './s3-server-for-tests.ts';
import { S3Store } from './s3-store.ts';

const failsWith =
  (...failures: StoreFailure[]) =>
  (error: unknown) =>
    error instanceof StoreError && failures.includes(error.failure);

const elapsed = async (work: () => Promise<unknown>): Promise<number> => {
  const startMs = performance.now();
  await work();
  return performance.now() - startMs;
};

describe('a store that fails', { skip: (await s3Missing()) ?? false }, () => {
  let s3: S3ForTests;
  let proxy: FaultProxy;
  const stores: BlobStore[] = [];
  const body = randomBytes(200_000);

  before(async () => {
    s3 = await startS3();
    proxy = await startFaultProxy(s3.port);
    await bare().put('object', body);
  });
  afterEach(async () => {
    proxy.set({});
    for (const store of stores.splice(0)) await store.close();
  });
  after(async () => {
    await proxy.close();
    await s3.stop();
  });

  /** Without retries and breaker: what one request says. */
  const bare = () => {
    const { bucket } = s3;
    const store = new S3Store({ bucket, prefix: '', endpoint: proxy.endpoint, credentials: testCredentials });
    stores.push(store);
    return store;
  };
  const whole = async (options: Parameters<typeof openStore>[1] = {}) => {
    const store = await openStore(`s3://${s3.bucket}`, {
      s3Endpoint: proxy.endpoint,
      s3Credentials: testCredentials,
      ...options,
    });
    stores.push(store);
    return store;
  };

  it('says that it is unavailable when connections are refused', async () => {
    proxy.set({ refuse: true });
    await assert.rejects(bare().get('object'), failsWith('unavailable'));
    await assert.rejects(bare().put('other', body), failsWith('unavailable'));
    await assert.rejects(bare().list(''), failsWith('unavailable'));
  });

  it('says that credentials or bucket are refused, which no retry mends', async () => {
    const { bucket } = s3;
    const wrong = { accessKeyId: 'thaw-tests', secretAccessKey: 'wrong' };
    const endpoint = proxy.endpoint;
    const denied = new S3Store({ bucket, prefix: '', endpoint, credentials: wrong });
    const elsewhere = new S3Store({
      bucket: 'no-such-bucket',
      prefix: '',
      endpoint,
      credentials: testCredentials,
    });
    stores.push(denied, elsewhere);
    await assert.rejects(denied.get('object'), failsWith('refused'));
    await assert.rejects(elsewhere.put('object', body), failsWith('refused'));
    await assert.rejects(elsewhere.get('object'), failsWith('refused'));
  });

  it('row 6: ends at its deadline when no answer comes', async () => {
    proxy.set({ stall: true });
    const tookMs = await elapsed(() =>
      assert.rejects(bare().get('object', { timeoutMs: 200 }), failsWith('deadline')),
    );
    assert.ok(tookMs < 2_000, `${tookMs} ms`);
    const controller = new AbortController();
    const get = bare().get('object', { signal: controller.signal });
    setImmediate(() => controller.abort());
    await assert.rejects(get, failsWith('aborted'));
  });

  it('never takes an answer that was cut off for a whole one', async () => {
    for (const cutAfterBytes of [0, 10, 500, 100_000, 200_000]) {
      proxy.set({ cutAfterBytes });
      await assert.rejects(
        bare().get('object'),
        failsWith('unavailable', 'out-of-range'),
        `${cutAfterBytes}`,
      );
      const range = { offsetBytes: 5, sizeBytes: 199_990 };
      await assert.rejects(
        async () => {
          for await (const _piece of await bare().getStream('object', { range }));
        },
        failsWith('unavailable', 'out-of-range'),
      );
    }
  });

  it('is asked again after a passing failure, and then answers', async () => {
    const store = await whole();
    proxy.set({ refuse: true });
    const get = store.get('object');
    // Mended only once the first attempt has failed.
    const failures = async () => {
      const { values } = await metrics.storeRequest.get();
      return values.filter(({ labels }) => labels.outcome === 'unavailable').length;
    };
    while ((await failures()) === 0) await new Promise(setImmediate);
    proxy.set({});
    assert.ok((await get).equals(body));
  });

  it('row 5: is left alone when it is down: callers fail fast, with no pile-up, until it is back', async () => {
    const store = await whole({ breaker: { maxFailures: 4, firstPauseMs: 100, maxPauseMs: 200 } });
    assert.ok((await store.get('object')).equals(body));
    proxy.set({ refuse: true });
    await Promise.allSettled(Array.from({ length: 8 }, () => store.get('object')));
    const answersBefore = proxy.answers;
    const errors: unknown[] = [];
    const tookMs = await elapsed(() =>
      Promise.all(
        Array.from({ length: 500 }, () => store.get('object').catch((error: unknown) => errors.push(error))),
      ),
    );
    assert.equal(errors.length, 500);
    for (const error of errors) {
      assert.ok(error instanceof StoreError);
      assert.equal(error.code, 'store-unavailable');
      assert.ok(error.retryable);
    }
    assert.ok(errors.some((error) => (error as StoreError).retryAfterSeconds !== undefined));
    assert.ok(tookMs < 5_000, `500 callers were told within ${tookMs} ms`);
    assert.equal(proxy.answers, answersBefore);
    proxy.set({});
    for (let back = false; !back; )
      back = await store.get('object').then(
        () => true,
        () => false,
      );
    assert.ok((await store.get('object')).equals(body));
  });

  it('row 6: gets a second read when the first is slow, within a budget', async () => {
    const store = await whole({ hedge: { earnedPerRead: 0, maxSaved: 3, minDelayMs: 50 } });
    for (let read = 0; read < 20; read++) await store.get('object');
    const hedges = async () => {
      const { values } = await metrics.fallbacks.get();
      return values.find(({ labels }) => labels.kind === 'hedged-read')?.value ?? 0;
    };
    const before = await hedges();
    proxy.set({ firstByteDelayMs: 1_500 });
    const slow = store.get('object');
    while ((await hedges()) === before) await new Promise(setImmediate);
    proxy.set({});
    assert.ok((await slow).equals(body));
    proxy.set({ firstByteDelayMs: 300 });
    await Promise.all(Array.from({ length: 20 }, () => store.get('object')));
    assert.ok((await hedges()) - before <= 3, 'a store that is slow as a whole gets no second load');
  });

  it('goes on after a restart of the server', async () => {
    const store = await whole({ breaker: { firstPauseMs: 50, maxPauseMs: 100 } });
    await s3.kill();
    await assert.rejects(store.get('object', { timeoutMs: 2_000 }), { code: 'store-unavailable' });
    await s3.restart();
    for (let back = false; !back; )
      back = await store.get('object').then(
        () => true,
        () => false,
      );
    assert.ok((await store.get('object')).equals(body));
  });
});
