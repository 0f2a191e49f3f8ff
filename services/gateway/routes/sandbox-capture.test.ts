// The routes that save sandboxes, over a real Redis and a simulated node: wire shapes, states and what stays afterwards.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { ThawError } from '../../../shared/errors.ts';
import { eventually } from '../eventually.ts';
import { type GatewayForTests, startGateway } from '../gateway-for-tests.ts';

let gateway: GatewayForTests;
before(async () => {
  gateway = await startGateway();
});
after(() => gateway.close());

const connection = () => ({ apiKey: gateway.apiKey, apiUrl: gateway.url, sandboxUrl: gateway.url });
const create = (template = 'base', options = {}) => Sandbox.create(template, { ...connection(), ...options });
const post = (path: string, body: object = {}) =>
  gateway.call(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });

describe('saving sandboxes', () => {
  it('snapshots a running one, lists it, starts from it, deletes it', async () => {
    const sandbox = await create();
    const { snapshotId } = await sandbox.createSnapshot();
    assert.match(snapshotId, /^snap-/);
    const listed = await sandbox.listSnapshots().nextItems();
    assert.deepEqual(
      listed.map((snapshot) => snapshot.snapshotId),
      [snapshotId],
    );
    const clone = await create(snapshotId);
    assert.notEqual(clone.sandboxId, sandbox.sandboxId);
    const detail = (await (await gateway.call(`/v1/snapshots/${snapshotId}`)).json()) as Record<
      string,
      unknown
    >;
    assert.equal(detail.sandboxId, sandbox.sandboxId);
    const checked = await gateway.call(`/v1/snapshots/${snapshotId}/verification`);
    const { copies } = (await checked.json()) as { copies: { copy: string; damaged: unknown[] }[] };
    assert.deepEqual([checked.status, copies[0]?.copy, copies[0]?.damaged], [200, 'local', []]);
    assert.equal(await Sandbox.deleteSnapshot(snapshotId, connection()), true);
    assert.equal((await gateway.call(`/v1/snapshots/${snapshotId}/verification`)).status, 404);
    assert.equal(await Sandbox.deleteSnapshot(snapshotId, connection()), false);
    await clone.kill();
    await sandbox.kill();
  });

  it('refuses a name that is taken, and a snapshot that does not exist', async () => {
    const sandbox = await create();
    assert.equal((await post(`/sandboxes/${sandbox.sandboxId}/snapshots`, { name: 'once' })).status, 201);
    assert.equal((await post(`/sandboxes/${sandbox.sandboxId}/snapshots`, { name: 'once' })).status, 409);
    assert.equal((await gateway.call('/v1/snapshots/snap-000000000000000000000000')).status, 404);
    assert.equal((await post('/v2/sandboxes', { templateID: 'snap-000000000000000000000000' })).status, 404);
    await sandbox.kill();
  });

  it('pauses, is gone for traffic, and comes back under the same id and token', async () => {
    const sandbox = await create();
    const { sandboxId } = sandbox;
    const before = gateway.state.sandboxes.get(sandboxId)!;
    assert.equal(await sandbox.pause(), true);
    assert.equal(await sandbox.pause(), false);
    assert.equal(await sandbox.isRunning(), false);
    assert.equal((await sandbox.getInfo()).state, 'paused');
    assert.deepEqual(await sandbox.listSnapshots().nextItems(), [], 'a pause is no snapshot');
    assert.equal((await post(`/sandboxes/${sandboxId}/snapshots`)).status, 409);
    assert.equal((await post(`/sandboxes/${sandboxId}/fork`)).status, 409);
    await gateway.restart();
    assert.equal((await post(`/v2/sandboxes/${sandboxId}/connect`, { timeout: 60 })).status, 201);
    assert.equal((await post(`/v2/sandboxes/${sandboxId}/connect`, { timeout: 60 })).status, 200);
    assert.equal(gateway.state.sandboxes.get(sandboxId)!.accessToken, before.accessToken);
    assert.equal(
      gateway.node.snapshots.filter(({ names }) => names.includes(`paused-${sandboxId}`)).length,
      0,
    );
    assert.equal((await gateway.call(`/sandboxes/${sandboxId}`, { method: 'DELETE' })).status, 204);
  });

  it('kills a paused one with its memory', async () => {
    const sandbox = await create();
    await sandbox.pause();
    await Sandbox.kill(sandbox.sandboxId, connection());
    assert.ok(!gateway.node.snapshots.some(({ sandboxId }) => sandboxId === sandbox.sandboxId));
  });

  it('pauses at its end when asked to, and resumes for traffic', async () => {
    const created = (await (
      await post('/v2/sandboxes', {
        templateID: 'base',
        timeout: 1,
        autoPause: true,
        autoResume: { enabled: true },
      })
    ).json()) as { sandboxID: string };
    const { sandboxID } = created;
    await eventually('it is paused', () => gateway.state.sandboxes.get(sandboxID)?.state === 'paused');
    const response = await fetch(`${gateway.url}/echo`, {
      headers: { 'e2b-sandbox-id': sandboxID, 'e2b-sandbox-port': '8000' },
    });
    assert.equal(response.status, 200);
    assert.equal(gateway.state.sandboxes.get(sandboxID)!.state, 'running');
    await gateway.call(`/sandboxes/${sandboxID}`, { method: 'DELETE' });
  });

  it('row 27: a fork of which one cannot be made gives the others, and says which and why', async (context) => {
    const sandbox = await create();
    const { node } = gateway;
    const real = node.createSandbox.bind(node);
    let calls = 0;
    context.mock.method(node, 'createSandbox', (request: Parameters<typeof real>[0]) => {
      if (++calls === 2) return Promise.reject(new ThawError('restore-failed', 'injected'));
      return real(request);
    });
    const response = await post(`/sandboxes/${sandbox.sandboxId}/fork`, { count: 4, timeout: 60 });
    assert.equal(response.status, 201);
    type Row = { sandbox?: { sandboxID: string }; error?: { code: number; message: string } };
    const rows = (await response.json()) as Row[];
    assert.deepEqual(
      rows.map(({ error }) => error),
      [undefined, { code: 503, message: 'injected' }, undefined, undefined],
    );
    const made = rows.flatMap((row) => (row.sandbox ? [row.sandbox.sandboxID] : []));
    const kept = node.snapshots.filter(({ sandboxId }) => sandboxId === sandbox.sandboxId);
    assert.deepEqual(kept, [], 'the snapshot that they were made of is gone');
    for (const sandboxId of [...made, sandbox.sandboxId])
      assert.equal((await gateway.call(`/sandboxes/${sandboxId}`, { method: 'DELETE' })).status, 204);
    assert.equal(node.sandboxes.size, 0, 'nothing is left of the one that failed');
  });

  it('row 25: of two snapshots of one name at once one is made, and the other is a conflict', async () => {
    const sandboxes = await Promise.all([create(), create()]);
    const answers = await Promise.all(
      sandboxes.map(({ sandboxId }) => post(`/sandboxes/${sandboxId}/snapshots`, { name: 'at-once' })),
    );
    assert.deepEqual(answers.map(({ status }) => status).sort(), [201, 409]);
    await Promise.all(sandboxes.map((sandbox) => sandbox.kill()));
  });

  it('forks several at once, each with its own result', async () => {
    const sandbox = await create();
    const response = await post(`/sandboxes/${sandbox.sandboxId}/fork`, { count: 3, timeout: 60 });
    assert.equal(response.status, 201);
    const forks = (await response.json()) as { sandbox?: { sandboxID: string } }[];
    const ids = new Set(forks.map((fork) => fork.sandbox!.sandboxID));
    assert.equal(ids.size, 3);
    for (const sandboxId of [...ids, sandbox.sandboxId])
      await gateway.call(`/sandboxes/${sandboxId}`, { method: 'DELETE' });
  });
});
