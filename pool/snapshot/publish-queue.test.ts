import assert from 'node:assert/strict';
import { afterEach, describe, it } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ThawError } from '../../shared/errors.ts';
import { silentLog } from '../../shared/log.ts';
import { testId } from './capture-for-tests.ts';
import { PublishQueue } from './publish-queue.ts';

const [a, b, c] = [testId(1), testId(2), testId(3)];
const down = () => new ThawError('store-unavailable', 'the store does not answer');

/** Publishes that the test lets end, one after the other. */
class Publishes {
  readonly begun: string[] = [];
  readonly atMs: number[] = [];
  #running: PromiseWithResolvers<void> | undefined;
  #begins = Promise.withResolvers<void>();
  /** Whether a publish ends by its signal, or goes on to its end. */
  heedsSignal = true;

  publish = (snapshotId: string, signal: AbortSignal): Promise<void> => {
    this.begun.push(snapshotId);
    this.atMs.push(performance.now());
    const running = Promise.withResolvers<void>();
    this.#running = running;
    if (this.heedsSignal) signal.addEventListener('abort', () => running.reject(signal.reason));
    this.#begins.resolve();
    return running.promise;
  };

  /** Ends the one under way, or the next when there is none. */
  async end(error?: Error): Promise<void> {
    await this.#begins.promise;
    this.#begins = Promise.withResolvers();
    if (error) this.#running!.reject(error);
    else this.#running!.resolve();
    await nextTurn();
  }
}

describe('the queue of what waits for the store', () => {
  let publishes: Publishes;
  let queue: PublishQueue;
  const open = (firstRetryMs = 1, maxRetryMs = 4) => {
    publishes = new Publishes();
    queue = new PublishQueue({ log: silentLog, publish: publishes.publish, firstRetryMs, maxRetryMs });
  };
  const add = (...ids: string[]) => {
    for (const snapshotId of ids) queue.add({ snapshotId });
  };
  afterEach(() => queue.close());

  it('publishes one at a time in the order of coming, each once', async () => {
    open();
    add(a, b, a, c);
    assert.deepEqual(publishes.begun, [a]);
    assert.equal(queue.stateOf(c), 'waiting');
    await publishes.end();
    assert.deepEqual([queue.stateOf(a), publishes.begun], ['stored', [a, b]]);
    add(a);
    await publishes.end();
    await publishes.end();
    await queue.settled();
    assert.deepEqual(publishes.begun, [a, b, c]);
    assert.deepEqual(queue.backlog, { waiting: 0, failing: false });
    assert.equal(queue.stateOf(testId(9)), 'unknown');
  });

  it('takes what comes in the very turn in which it runs dry', async () => {
    open();
    const working = new PublishQueue({ log: silentLog, publish: async () => {} });
    for (let number = 1; number < 50; number++) {
      working.add({ snapshotId: testId(number) });
      for (let turn = 0; turn < number % 7; turn++) await undefined;
    }
    await working.settled();
    assert.equal(working.backlog.waiting, 0);
    await working.close();
  });

  it('row 5: while the store fails, waits longer each time up to a limit, and lets no child overtake its parent', async () => {
    open(20, 40);
    add(a, b);
    for (let left = 4; left > 0; left--) await publishes.end(down());
    assert.deepEqual(queue.backlog, { waiting: 2, failing: true });
    await publishes.end();
    assert.equal(queue.backlog.failing, false);
    assert.deepEqual(publishes.begun, [a, a, a, a, a, b]);
    const waits = publishes.atMs.slice(1, 5).map((atMs, index) => atMs - publishes.atMs[index]!);
    for (const [index, leastMs] of [20, 40, 40, 40].entries())
      assert.ok(waits[index]! >= leastMs - 2, `${waits} ms`);
    await publishes.end();
    await queue.settled();
  });

  it('gives up for good what can never be published, says so, and goes on with the next', async () => {
    open();
    add(a, b);
    await publishes.end(down());
    await publishes.end(new ThawError('snapshot-damaged', 'its pages are gone'));
    assert.equal(queue.stateOf(a), 'refused');
    await publishes.end(new TypeError('a bug'));
    await queue.settled();
    assert.equal(queue.stateOf(b), 'refused');
    assert.deepEqual(queue.backlog, { waiting: 0, failing: false }, 'nobody waits any more');
    add(a);
    await publishes.end();
    assert.equal(queue.stateOf(a), 'stored');
  });

  it('forgets what is removed, waiting or done', async () => {
    open();
    add(a, b, c);
    await queue.remove(b);
    await publishes.end();
    await publishes.end();
    await queue.settled();
    assert.deepEqual(publishes.begun, [a, c]);
    await queue.remove(a);
    assert.equal(queue.stateOf(a), 'unknown');
  });

  it('ends a publish of what is removed, and the removal waits for that end', async () => {
    open();
    publishes.heedsSignal = false;
    add(a);
    let removed = false;
    const removing = queue.remove(a).then(() => {
      removed = true;
    });
    await nextTurn();
    assert.equal(removed, false, 'its manifest may still come into the store');
    await publishes.end();
    await removing;
    assert.equal(queue.stateOf(a), 'unknown', 'also when the publish was too far to be ended');
  });

  it('publishes another snapshot of the same id that came while the removed one was ended', async () => {
    open();
    add(a);
    const removing = queue.remove(a);
    add(a);
    await removing;
    await nextTurn();
    await publishes.end();
    await queue.settled();
    assert.deepEqual([publishes.begun, queue.stateOf(a)], [[a, a], 'stored']);
  });

  it('ends with its node: what is under way is given up, what waits is not begun', async () => {
    open();
    add(a, b);
    await queue.close();
    assert.deepEqual([publishes.begun, queue.stateOf(a), queue.stateOf(b)], [[a], 'waiting', 'waiting']);
    add(c);
    assert.equal(queue.stateOf(c), 'unknown');
  });

  it('does not sit out its wait for the store when its node ends', async () => {
    open(60_000, 60_000);
    add(a);
    await publishes.end(down());
    const startMs = performance.now();
    await queue.close();
    assert.ok(performance.now() - startMs < 1_000);
  });
});
