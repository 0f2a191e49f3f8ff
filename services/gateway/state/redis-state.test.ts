import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Redis } from 'ioredis';
import { ThawError } from '../../../shared/errors.ts';
import { parseFunctionManifest } from '../../../shared/function-manifest.ts';
import { newApiKey, newSandboxId } from '../../../shared/ids.ts';
import { eventually } from '../eventually.ts';
import { type RedisForTests, startRedis } from './redis-for-tests.ts';
import { connectState } from './redis-state.ts';
import type { NewVersion, SandboxRecord, StateStore, VersionRecord } from './state-store.ts';

const newVersion = (name: string): NewVersion => ({
  name,
  manifest: parseFunctionManifest({ name, runtime: 'node' }),
  bundleSha256: 'a'.repeat(64),
  bundleSizeBytes: 10,
});

const readyFrom = (record: VersionRecord, snapshotId = `snap-${'1'.repeat(24)}`): VersionRecord => ({
  ...record,
  state: 'ready',
  snapshotId,
  finishedAt: new Date().toISOString(),
});

async function publish(state: StateStore, name: string): Promise<VersionRecord> {
  const record = await state.functions.beginVersion(newVersion(name), 'token', 5_000);
  const ready = readyFrom(record);
  await state.functions.finishVersion(ready, 'token');
  return ready;
}

const newSandbox = (over: Partial<SandboxRecord> = {}): SandboxRecord => ({
  sandboxId: newSandboxId(),
  templateId: 'base',
  alias: 'base',
  snapshotId: `snap-${'2'.repeat(24)}`,
  accessToken: 'token',
  metadata: {},
  state: 'running',
  startedAtMs: 1_000,
  endAtMs: 2_000_000_000_000,
  cpuCount: 1,
  memoryMb: 256,
  diskSizeMb: 512,
  allowInternetAccess: true,
  ...over,
});

const code = (expected: string) => (error: unknown) => error instanceof ThawError && error.code === expected;

describe('state over redis', () => {
  let redis: RedisForTests;
  let state: StateStore;
  let other: StateStore;
  before(async () => {
    redis = await startRedis();
    state = await connectState({ socketPath: redis.socketPath });
    other = await connectState({ socketPath: redis.socketPath });
  });
  after(async () => {
    await state.close();
    await other.close();
    await redis.stop();
  });

  it('serves a version only when it is finished as ready, to every gateway', async () => {
    const record = await state.functions.beginVersion(newVersion('one'), 'token', 5_000);
    assert.equal(record.version, 1);
    assert.equal(record.state, 'building');
    assert.equal(state.functions.resolve('one'), undefined);
    await state.functions.finishVersion(readyFrom(record), 'token');
    assert.equal(state.functions.resolve('one')?.version, 1);
    assert.equal(state.functions.resolve('one', 1)?.snapshotId, `snap-${'1'.repeat(24)}`);
    assert.equal(state.functions.resolve('one', 2), undefined);
    await eventually('the other gateway follows', () => other.functions.resolve('one') !== undefined);
    assert.deepEqual(other.functions.resolve('one'), state.functions.resolve('one'));
  });

  it('admits one build of a function at a time and never reuses a number', async () => {
    const results = await Promise.allSettled(
      ['a', 'b', 'c'].map((token) => state.functions.beginVersion(newVersion('race'), token, 5_000)),
    );
    const won = results.filter((result) => result.status === 'fulfilled');
    assert.equal(won.length, 1);
    for (const result of results)
      if (result.status === 'rejected') assert.ok(code('conflict')(result.reason));
    const record = won[0]!.value;
    const token = ['a', 'b', 'c'][results.indexOf(won[0]!)]!;
    await assert.rejects(state.functions.remove('race'), code('conflict'));
    await state.functions.finishVersion(readyFrom(record), token);
    assert.equal(await state.functions.remove('race'), true);
    assert.equal(await state.functions.remove('race'), false);
    assert.equal(state.functions.get('race'), undefined);
    const next = await state.functions.beginVersion(newVersion('race'), 'd', 5_000);
    assert.equal(next.version, record.version + 1);
    await state.functions.finishVersion({ ...readyFrom(next), state: 'failed', snapshotId: null }, 'd');
    assert.equal(state.functions.resolve('race'), undefined);
  });

  it('refuses to publish a build that lost its lease', async () => {
    const record = await state.functions.beginVersion(newVersion('late'), 'first', 20);
    await eventually('the lease ends', async () => (await state.functions.buildLeaseMs('late')) === 0);
    assert.equal(await state.functions.extendBuild('late', 'first', 1_000), false);
    const next = await state.functions.beginVersion(newVersion('late'), 'second', 5_000);
    await assert.rejects(state.functions.finishVersion(readyFrom(record), 'first'), code('conflict'));
    await state.functions.finishVersion(readyFrom(next), 'second');
    assert.equal(state.functions.resolve('late')?.version, 2);
  });

  it('switches between ready versions and protects the one that serves', async () => {
    await publish(state, 'switch');
    await publish(state, 'switch');
    assert.equal(state.functions.resolve('switch')?.version, 2);
    await state.functions.activate('switch', 1);
    assert.equal(state.functions.resolve('switch')?.version, 1);
    await assert.rejects(state.functions.removeVersion('switch', 1), code('conflict'));
    await state.functions.removeVersion('switch', 2);
    assert.equal(state.functions.resolve('switch', 2), undefined);
    await assert.rejects(state.functions.activate('switch', 2), code('function-not-found'));
  });

  it('keeps sandboxes with their ends, and extends without shortening', async () => {
    const sandbox = newSandbox({ metadata: { user: 'ä/ö' } });
    await state.sandboxes.create(sandbox);
    assert.deepEqual(state.sandboxes.get(sandbox.sandboxId), sandbox);
    await eventually('the other follows', () => other.sandboxes.get(sandbox.sandboxId) !== undefined);
    const { endAtMs } = sandbox;
    assert.equal(await state.sandboxes.setEnd(sandbox.sandboxId, endAtMs - 5, 'extend'), endAtMs);
    assert.equal(await state.sandboxes.setEnd(sandbox.sandboxId, endAtMs + 5, 'extend'), endAtMs + 5);
    assert.equal(await state.sandboxes.setEnd(sandbox.sandboxId, endAtMs - 9, 'set'), endAtMs - 9);
    assert.equal(state.sandboxes.get(sandbox.sandboxId)?.endAtMs, endAtMs - 9);
    await state.sandboxes.remove(sandbox.sandboxId);
    assert.equal(state.sandboxes.get(sandbox.sandboxId), undefined);
    assert.equal(await state.sandboxes.update(sandbox), false);
    assert.equal(await state.sandboxes.setEnd(sandbox.sandboxId, 1, 'set'), undefined);
    await eventually('the other forgets', () => other.sandboxes.get(sandbox.sandboxId) === undefined);
  });

  it('loses no change of a template, whoever makes them at once', async () => {
    const template = { templateId: 't', name: 'shared', createdAt: 'now', tags: {}, builds: [] };
    await Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        [state, other][n % 2]!.templates.change('shared', (known = template) => ({
          ...known,
          tags: { ...known.tags, [`tag-${n}`]: { buildId: 'b', assignedAt: 'now' } },
        })),
      ),
    );
    for (const one of [state, other])
      await eventually(
        'it has all',
        () => Object.keys(one.templates.get('shared')?.tags ?? {}).length === 20,
      );
    assert.equal(state.templates.get('t')?.name, 'shared');
    await other.templates.change('shared', () => undefined);
    await eventually('it is gone', () => state.templates.get('shared') === undefined);
  });

  it('stores keys only as hashes and verifies from memory', async () => {
    const key = newApiKey();
    assert.equal(state.keys.verify(key), false);
    await state.keys.add(key);
    await state.keys.add(key);
    assert.equal(state.keys.verify(key), true);
    assert.equal(state.keys.verify(`${key}0`), false);
    await eventually('the other admits it', () => other.keys.verify(key));
    const raw = new Redis({ path: redis.socketPath });
    const stored = JSON.stringify(await raw.hgetall('{thaw}:api-keys'));
    raw.disconnect();
    assert.ok(stored.length > 2 && !stored.includes(key));
    await assert.rejects(state.keys.add('short'), code('bad-config'));
    await state.keys.remove(key);
    assert.equal(state.keys.verify(key), false);
  });

  it('loads what an earlier run stored', async () => {
    await publish(state, 'kept');
    const template = { templateId: 't', name: 'mine', createdAt: 'now', tags: {}, builds: [] };
    await state.templates.change('mine', () => template);
    const again = await connectState({ socketPath: redis.socketPath });
    assert.deepEqual(again.functions.get('kept'), state.functions.get('kept'));
    assert.deepEqual(again.templates.list(), [template]);
    await again.close();
  });

  it('says state-unavailable when there is no redis', async () => {
    await assert.rejects(connectState({ socketPath: '/nonexistent/redis.sock' }), code('state-unavailable'));
  });

  it('reads from memory while redis is away, refuses writes, and refills a redis that lost its data', async () => {
    const key = newApiKey();
    await state.keys.add(key);
    await publish(state, 'survivor');
    const ended = newSandbox();
    const alive = newSandbox();
    await state.sandboxes.create(ended);
    await state.sandboxes.create(alive);
    await eventually('the other follows', () => other.sandboxes.get(alive.sandboxId) !== undefined);
    await redis.kill();
    await eventually('the loss is seen', () => !state.connected);
    assert.equal(state.functions.resolve('survivor')?.version, 1);
    assert.equal(state.keys.verify(key), true);
    await assert.rejects(
      state.functions.beginVersion(newVersion('survivor'), 't', 1_000),
      code('state-unavailable'),
    );
    await assert.rejects(state.sandboxes.create(newSandbox()), code('state-unavailable'));
    await state.sandboxes.remove(ended.sandboxId);
    assert.equal(state.sandboxes.get(ended.sandboxId), undefined);
    await redis.start();
    await eventually('both are back', () => state.connected && other.connected);
    const fresh = await connectState({ socketPath: redis.socketPath });
    assert.equal(fresh.functions.resolve('survivor')?.version, 1);
    assert.equal(fresh.keys.verify(key), true);
    assert.ok(fresh.sandboxes.get(alive.sandboxId));
    assert.equal(fresh.templates.get('mine')?.templateId, 't');
    const next = await state.functions.beginVersion(newVersion('survivor'), 't', 5_000);
    assert.equal(next.version, 2);
    assert.equal(state.sandboxes.get(ended.sandboxId), undefined);
    await fresh.close();
  });
});
