import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { NotFoundError, Sandbox, type SandboxInfo } from 'e2b';
import { ThawError } from '../../../shared/errors.ts';
import { newSandboxId, sandboxIdPattern } from '../../../shared/ids.ts';
import { eventually } from '../eventually.ts';
import { type GatewayForTests, startGateway } from '../gateway-for-tests.ts';

let gateway: GatewayForTests;
before(async () => {
  gateway = await startGateway();
});
after(() => gateway.close());

type Body = Record<string, unknown>;

const send = (method: string, path: string, body?: unknown) =>
  gateway.call(path, {
    method,
    headers: { 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });

async function create(body: Body = {}, path = '/v2/sandboxes'): Promise<Body & { sandboxID: string }> {
  const response = await send('POST', path, { templateID: 'base', ...body });
  const created = (await response.json()) as Body & { sandboxID: string };
  assert.equal(response.status, 201, JSON.stringify(created));
  return created;
}

async function assertE2bError(response: Response, status: number, words = /./): Promise<void> {
  const text = await response.text();
  assert.equal(response.status, status, text);
  const body = JSON.parse(text) as Body;
  assert.equal(body.code, status, 'the body repeats the status');
  assert.match(String(body.message), words);
}

const clearAll = async () => {
  for (const { sandboxId } of gateway.state.sandboxes.list()) await send('DELETE', `/sandboxes/${sandboxId}`);
};

describe('the sandbox control plane', () => {
  it('needs a key', async () => {
    for (const [method, path] of [
      ['POST', '/sandboxes'],
      ['POST', '/v2/sandboxes'],
      ['GET', '/v2/sandboxes'],
      ['DELETE', `/sandboxes/${newSandboxId()}`],
    ] as const)
      await assertE2bError(await fetch(`${gateway.url}${path}`, { method }), 401, /API key/);
  });

  it('creates with all that clients of any version read', async () => {
    const body = await create({ metadata: { a: 'b' }, envVars: { TOKEN: 'x' }, secure: true, unknown: 1 });
    assert.match(body.sandboxID, sandboxIdPattern);
    assert.equal(body.templateID, 'base');
    assert.equal(body.alias, 'base');
    assert.equal(body.envdVersion, '0.6.4');
    assert.match(String(body.envdAccessToken), /^[0-9a-f]{64}$/);
    assert.equal(typeof body.clientID, 'string');
    assert.equal(body.trafficAccessToken, null);
    assert.equal(body.domain, null);
    const atNode = gateway.node.sandboxes.get(body.sandboxID)!;
    assert.equal(atNode.accessToken, body.envdAccessToken);
    assert.deepEqual(atNode.envVars, { TOKEN: 'x' });
    const detail = (await (await send('GET', `/sandboxes/${body.sandboxID}`)).json()) as Body;
    assert.equal(detail.cpuCount, 2);
    assert.equal(detail.memoryMB, 512);
    assert.equal(detail.diskSizeMB, 1024);
    assert.equal(detail.state, 'running');
    assert.deepEqual(detail.metadata, { a: 'b' });
    assert.equal(detail.envdAccessToken, body.envdAccessToken);
    assert.ok(!JSON.stringify(detail).includes('TOKEN'));
  });

  it('gives 15 s by default in v1, 300 s in v2, and what was asked otherwise', async () => {
    const lifeOf = async (body: Body, path?: string) => {
      const { sandboxID } = await create(body, path);
      const record = gateway.state.sandboxes.get(sandboxID)!;
      assert.equal(gateway.node.sandboxes.get(sandboxID)?.endAtMs, record.endAtMs);
      return record.endAtMs - record.startedAtMs;
    };
    assert.equal(await lifeOf({}, '/sandboxes'), 15_000);
    assert.equal(await lifeOf({}), 300_000);
    assert.equal(await lifeOf({ timeout: 42 }), 42_000);
    await assertE2bError(
      await send('POST', '/v2/sandboxes', { templateID: 'base', timeout: 90_000 }),
      400,
      /86400/,
    );
  });

  it('refuses what it cannot do, in the shape of E2B', async () => {
    const post = (body: Body) => send('POST', '/v2/sandboxes', { templateID: 'base', ...body });
    await assertE2bError(await post({ templateID: 'nope' }), 404, /nope/);
    await assertE2bError(await post({ templateID: 7 }), 400, /templateID/);
    await assertE2bError(await post({ timeout: -1 }), 400, /timeout/);
    await assertE2bError(await post({ envVars: { 'A=B': 'x' } }), 400, /envVars/);
    await assertE2bError(await post({ metadata: { a: 1 } }), 400, /metadata/);
    for (const body of [
      { volumeMounts: [{}] },
      { mcp: {} },
      { iam: { tokens: {} } },
      { autoPause: true, autoPauseMemory: false },
    ])
      await assertE2bError(await post(body), 501, /not offered/);
    await create({ network: { allowPublicTraffic: true }, volumeMounts: [], autoPause: false });
    for (const [method, path] of [
      ['POST', '/v2/templates'],
      ['POST', '/volumes'],
    ] as const)
      await assertE2bError(await send(method, path, method === 'POST' ? {} : undefined), 501, /not offered/);
    await assertE2bError(await send('GET', '/v2/sandboxes/x/y/z'), 404);
  });

  it('leaves neither record nor VM when a create fails', async () => {
    await clearAll();
    gateway.node.failures.set(
      'createSandbox',
      new ThawError('no-capacity', 'no room', { retryAfterSeconds: 2 }),
    );
    const response = await send('POST', '/v2/sandboxes', { templateID: 'base' });
    gateway.node.failures.clear();
    assert.equal(response.headers.get('retry-after'), '2');
    await assertE2bError(response, 503, /no room/);
    assert.deepEqual(gateway.state.sandboxes.list(), []);
    await gateway.redis.kill();
    await eventually('the loss is seen', () => !gateway.state.connected);
    await assertE2bError(await send('POST', '/v2/sandboxes', { templateID: 'base' }), 503, /Redis/);
    assert.equal(gateway.node.sandboxes.size, 0);
    await gateway.redis.start();
    await eventually('it is back', () => gateway.state.connected);
  });

  it('moves the end: connect only extends, timeout sets', async () => {
    const { sandboxID, envdAccessToken } = await create({ timeout: 100 });
    const leftSeconds = () => (gateway.node.sandboxes.get(sandboxID)!.endAtMs - Date.now()) / 1_000;
    const shorter = await send('POST', `/v2/sandboxes/${sandboxID}/connect`, { timeout: 10 });
    assert.equal(shorter.status, 200);
    assert.equal(((await shorter.json()) as Body).envdAccessToken, envdAccessToken);
    assert.ok(leftSeconds() > 90);
    assert.equal((await send('POST', `/sandboxes/${sandboxID}/connect`, { timeout: 200 })).status, 200);
    assert.ok(leftSeconds() > 190);
    assert.equal((await send('POST', `/sandboxes/${sandboxID}/timeout`, { timeout: 20 })).status, 204);
    assert.ok(leftSeconds() < 21);
    assert.equal((await send('POST', `/sandboxes/${sandboxID}/refreshes`)).status, 204);
    const unknown = newSandboxId();
    await assertE2bError(await send('POST', `/v2/sandboxes/${unknown}/connect`, {}), 404);
    await assertE2bError(await send('POST', `/sandboxes/${unknown}/timeout`, { timeout: 1 }), 404);
    await assertE2bError(await send('POST', `/sandboxes/${sandboxID}/timeout`, {}), 400, /timeout/);
    await assertE2bError(await send('GET', '/sandboxes/..%2f..%2fetc'), 404);
  });

  it('forgets a sandbox when its time is up or its VM ends', async () => {
    const timed = await create({ timeout: 1 });
    await eventually('the end', () => gateway.state.sandboxes.get(timed.sandboxID) === undefined);
    const died = await create();
    gateway.node.endSandbox(died.sandboxID, 'vm-died');
    assert.equal((await send('GET', `/sandboxes/${died.sandboxID}`)).status, 404);
  });

  it('lists by filters, in order, page by page', async () => {
    await clearAll();
    const ids: string[] = [];
    for (const metadata of [
      { user: 'a b/ö', n: '1' },
      { user: 'other', n: '2' },
      { user: 'a b/ö', n: '3' },
    ])
      ids.push((await create({ metadata })).sandboxID);
    const list = async (query: string) => {
      const response = await send('GET', `/v2/sandboxes?${query}`);
      const rows = (await response.json()) as { sandboxID: string }[];
      return { ids: rows.map((row) => row.sandboxID), next: response.headers.get('x-next-token') };
    };
    assert.deepEqual((await list('order=asc')).ids, ids);
    assert.deepEqual((await list('')).ids, [...ids].reverse());
    const first = await list('order=asc&limit=2');
    assert.deepEqual(first.ids, ids.slice(0, 2));
    const second = await list(`order=asc&limit=2&nextToken=${first.next}`);
    assert.deepEqual(second, { ids: ids.slice(2), next: null });
    const metadata = new URLSearchParams({
      [encodeURIComponent('user')]: encodeURIComponent('a b/ö'),
    }).toString();
    assert.deepEqual((await list(new URLSearchParams({ metadata, order: 'asc' }).toString())).ids, [
      ids[0],
      ids[2],
    ]);
    assert.deepEqual((await list('state=paused')).ids, []);
    assert.equal((await list('state=running,paused')).ids.length, 3);
    assert.equal((await list('template=base')).ids.length, 3);
    assert.equal((await list('template=other')).ids.length, 0);
    assert.equal((await list(`startedAfter=${new Date(Date.now() + 1000).toISOString()}`)).ids.length, 0);
    for (const bad of [
      'limit=0',
      'limit=x',
      'order=up',
      'state=gone',
      'nextToken=%20',
      'startedAfter=never',
      'metadata=a%3D%2525',
    ])
      await assertE2bError(await send('GET', `/v2/sandboxes?${bad}`), 400);
  });

  it('removes what an earlier run left', async () => {
    const { sandboxID } = await create();
    await gateway.restart();
    assert.ok(gateway.state.sandboxes.get(sandboxID));
    await gateway.app.gateway.resume();
    assert.equal(gateway.state.sandboxes.get(sandboxID), undefined);
    await assertE2bError(await send('GET', `/sandboxes/${sandboxID}`), 404);
  });
});

describe('the unmodified e2b client', () => {
  const options = () => ({ apiKey: gateway.apiKey, apiUrl: gateway.url, sandboxUrl: gateway.url });

  it('creates, connects, looks, extends, lists and kills', async () => {
    await clearAll();
    const sandbox = await Sandbox.create('base', {
      ...options(),
      metadata: { who: 'me & you' },
      timeoutMs: 60_000,
    });
    const info = await sandbox.getInfo();
    assert.equal(info.templateId, 'base');
    assert.equal(info.state, 'running');
    assert.deepEqual(info.metadata, { who: 'me & you' });
    assert.equal(await sandbox.isRunning(), true);
    await sandbox.setTimeout(120_000);
    assert.ok((await sandbox.getInfo()).endAt.getTime() - Date.now() > 110_000);
    const again = await Sandbox.connect(sandbox.sandboxId, options());
    assert.equal(again.sandboxId, sandbox.sandboxId);
    await Sandbox.create('base', options());
    const found: SandboxInfo[] = [];
    const pages = Sandbox.list({ ...options(), limit: 1, query: { metadata: { who: 'me & you' } } });
    while (pages.hasNext) found.push(...(await pages.nextItems()));
    assert.deepEqual(
      found.map((row) => row.sandboxId),
      [sandbox.sandboxId],
    );
    const all: SandboxInfo[] = [];
    const paged = Sandbox.list({ ...options(), limit: 1 });
    while (paged.hasNext) all.push(...(await paged.nextItems()));
    assert.equal(all.length, 2);
    assert.equal(await sandbox.kill(), true);
    assert.equal(await Sandbox.kill(sandbox.sandboxId, options()), false);
    assert.equal(await sandbox.isRunning(), false);
    await assert.rejects(Sandbox.connect(sandbox.sandboxId, options()), NotFoundError);
    await assert.rejects(Sandbox.create('nope', options()), /404/);
    await assert.rejects(
      Sandbox.create('base', { ...options(), apiKey: `e2b_${'0'.repeat(40)}` }),
      /API key/i,
    );
  });
});
