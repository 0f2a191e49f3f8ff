import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { StoreError, type StoreFailure } from './blob-store.ts';
import { Breaker } from './breaker.ts';
import { limited } from './limited.ts';
import { openStore } from './open-store.ts';
import { runRequest } from './request.ts';
import { attempts, type RetryPolicy } from './retry-policy.ts';
import type { StoreRequest } from './wrapped-store.ts';

const request: StoreRequest = { op: 'get', what: 'get of x', bodyBytes: 0, askedBytes: 0, options: {} };
const failing = (failure: StoreFailure) => async () => {
  throw new StoreError(failure, failure);
};
const signal = new AbortController().signal;
const policy: RetryPolicy = { maxAttempts: 3, firstDelayMs: 0, maxDelayMs: 0, random: () => 0 };

describe('retries', () => {
  it('are for what may pass, and end', async () => {
    for (const [failure, expected] of [
      ['unavailable', 3],
      ['refused', 1],
      ['absent', 1],
      ['full', 1],
      ['not-tried', 1],
      ['aborted', 1],
    ] as const) {
      let count = 0;
      const work = () => {
        count += 1;
        return failing(failure)();
      };
      await assert.rejects(attempts(policy, signal, work), { failure });
      assert.equal(count, expected, failure);
    }
  });

  it('end with their caller', async () => {
    const slow: RetryPolicy = { ...policy, firstDelayMs: 60_000, maxDelayMs: 60_000, random: () => 1 };
    await assert.rejects(
      runRequest('x', { timeoutMs: 30 }, (end) => attempts(slow, end.signal, failing('unavailable'))),
      { failure: 'deadline' },
    );
  });
});

describe('the breaker', () => {
  it('opens after failures in a row, lets one through after its pause, and closes again', async () => {
    let nowMs = 0;
    const breaker = new Breaker({
      maxFailures: 3,
      firstPauseMs: 100,
      maxPauseMs: 400,
      now: () => nowMs,
      random: () => 1,
    });
    const fail = () =>
      assert.rejects(breaker.around(request, failing('unavailable')), { failure: 'unavailable' });
    const refused = () =>
      assert.rejects(
        breaker.around(request, async () => 'x'),
        { failure: 'not-tried' },
      );
    await fail();
    await fail();
    await breaker.around(request, async () => 'a success in between');
    for (let n = 0; n < 3; n++) await fail();
    assert.equal(breaker.state, 'open');
    await refused();
    for (const pauseMs of [100, 200, 400, 400]) {
      nowMs += pauseMs - 1;
      await refused();
      nowMs += 1;
      assert.equal(breaker.state, 'half-open');
      await fail();
      assert.equal(breaker.state, 'open');
    }
    nowMs += 400;
    let answer = (_: string) => {};
    const probe = breaker.around(
      request,
      () =>
        new Promise<string>((resolve) => {
          answer = resolve;
        }),
    );
    await refused();
    answer('it is back');
    assert.equal(await probe, 'it is back');
    assert.equal(breaker.state, 'closed');
  });

  it('takes a refusal for an answer, and a caller who gave up for nothing', async () => {
    const breaker = new Breaker({ maxFailures: 1, now: () => 0 });
    for (const failure of ['absent', 'refused', 'full', 'out-of-range', 'aborted'] as const)
      await assert.rejects(breaker.around(request, failing(failure)), { failure });
    assert.equal(breaker.state, 'closed');
    await assert.rejects(breaker.around(request, failing('deadline')), { failure: 'deadline' });
    assert.equal(breaker.state, 'open');
  });
});

describe('the limit', () => {
  it('lets so many run and so many wait, whatever the order of their ends', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.nat(9), { minLength: 1, maxLength: 30 }), async (ends) => {
        const around = limited({ maxRunning: 2, maxWaiting: 3 });
        let running = 0;
        const finish: (() => void)[] = [];
        const calls = ends.map(() =>
          around(request, async () => {
            running += 1;
            assert.ok(running <= 2);
            await new Promise<void>((resolve) => finish.push(resolve));
            running -= 1;
            return 'done';
          }),
        );
        const settled = Promise.allSettled(calls);
        for (let done = 0; done < Math.min(5, ends.length); done++) {
          while (finish.length === 0) await new Promise(setImmediate);
          finish.splice(ends[done]! % finish.length, 1)[0]!();
        }
        const outcomes = await settled;
        const refused = outcomes.filter(({ status }) => status === 'rejected');
        assert.equal(refused.length, Math.max(0, ends.length - 5));
        assert.equal(await around(request, async () => 'free again'), 'free again');
      }),
      { numRuns: 30 },
    );
  });

  it('gives up those whose time ran out, and their turn goes on', async () => {
    const around = limited({ maxRunning: 1, maxWaiting: 3 });
    let end = () => {};
    const first = around(
      request,
      () =>
        new Promise<void>((resolve) => {
          end = resolve;
        }),
    );
    const short = { ...request, options: { timeoutMs: 20 } };
    await assert.rejects(
      around(short, async () => {}),
      { failure: 'deadline' },
    );
    const next = around(request, async () => 'mine');
    end();
    await first;
    assert.equal(await next, 'mine');
  });
});

describe('addresses', () => {
  it('that are no store’s are refused', async () => {
    for (const url of [
      '',
      'file://host/x',
      'http://x',
      's3://',
      's3://A',
      's3://bucket/../x',
      's3://bucket//x',
      's3:/x',
    ])
      await assert.rejects(openStore(url), { code: 'bad-config' }, url);
  });
});
