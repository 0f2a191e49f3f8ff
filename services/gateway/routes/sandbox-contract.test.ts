// The rest of E2B's contract, over a real Redis and a simulated node: logs, metrics, old routes, what needs memory,
// a guest that must be healthy, pages of snapshots.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { ThawError } from '../../../shared/errors.ts';
import { eventually } from '../eventually.ts';
import { type GatewayForTests, startGateway } from '../gateway-for-tests.ts';

let gateway: GatewayForTests;
before(async () => {
  gateway = await startGateway();
});
after(() => gateway.close());

type Body = Record<string, unknown>;

const send = (method: string, path: string, body?: Body) =>
  gateway.call(path, {
    method,
    headers: { 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
const read = async <T>(path: string, status = 200): Promise<T> => {
  const response = await send('GET', path);
  assert.equal(response.status, status, path);
  return (await response.json()) as T;
};
async function create(body: Body = {}): Promise<string> {
  const response = await send('POST', '/v2/sandboxes', { templateID: 'base', ...body });
  return ((await response.json()) as { sandboxID: string }).sandboxID;
}
async function assertRefused(response: Response, status: number, words = /./): Promise<void> {
  const body = (await response.json()) as { code: number; message: string };
  assert.deepEqual([response.status, body.code], [status, status], body.message);
  assert.match(body.message, words);
}

interface Entry {
  timestamp: string;
  level: string;
  message: string;
  fields: Record<string, string>;
}

describe('logs of a sandbox', () => {
  it('tell its life and what its programs wrote, in both versions', async () => {
    const id = await create();
    const atMs = Date.now() + 5;
    gateway.node.written.set(id, [
      { event: 'log', stream: 'stdout', line: 'listening', atMs },
      { event: 'log', stream: 'stderr', line: 'a warning', atMs: atMs + 1 },
    ]);
    const v1 = await read<{ logs: { timestamp: string; line: string }[]; logEntries: Entry[] }>(
      `/sandboxes/${id}/logs`,
    );
    const messages = ['sandbox started', 'listening', 'a warning'];
    assert.deepEqual(
      v1.logs.map(({ line }) => JSON.parse(line).message),
      messages,
    );
    assert.deepEqual(JSON.parse(v1.logs[1]!.line), {
      level: 'info',
      logger: 'process',
      message: 'listening',
      stream: 'stdout',
    });
    assert.ok(v1.logs.every(({ timestamp }) => !Number.isNaN(Date.parse(timestamp))));
    assert.deepEqual(
      v1.logEntries.map(({ message }) => message),
      messages,
    );
    const v2 = async (query: string) =>
      (await read<{ logs: Entry[] }>(`/v2/sandboxes/${id}/logs?${query}`)).logs.map(({ message }) => message);
    assert.deepEqual(await v2(''), messages);
    assert.deepEqual(await v2('direction=backward'), [...messages].reverse());
    assert.deepEqual(await v2('direction=backward&limit=1'), ['a warning']);
    assert.deepEqual(await v2('limit=1'), ['sandbox started']);
    assert.deepEqual(await v2('level=warn'), ['a warning']);
    assert.deepEqual(await v2('search=listen'), ['listening']);
    assert.deepEqual(await v2('search=LISTEN'), []);
    assert.deepEqual(await v2(`cursor=${atMs}`), ['listening', 'a warning']);
    assert.deepEqual(await v2(`cursor=${atMs}&direction=backward`), ['listening', 'sandbox started']);
    const since = await read<{ logs: unknown[] }>(`/sandboxes/${id}/logs?start=${atMs + 1}&limit=10`);
    assert.equal(since.logs.length, 1);
    for (const bad of [
      'limit=0',
      'limit=x',
      'limit=1001',
      'level=loud',
      'direction=up',
      'cursor=-1',
      'limit=1&limit=2',
    ])
      await assertRefused(await send('GET', `/v2/sandboxes/${id}/logs?${bad}`), 400);
  });

  it('go on over a pause and end with the sandbox', async () => {
    const id = await create({ envVars: { TOKEN: 'hush' } });
    await send('POST', `/sandboxes/${id}/pause`);
    await send('POST', `/v2/sandboxes/${id}/connect`);
    await send('POST', `/sandboxes/${id}/snapshots`);
    const { logs } = await read<{ logs: Entry[] }>(`/v2/sandboxes/${id}/logs`);
    assert.deepEqual(
      logs.map(({ message }) => message),
      ['sandbox started', 'sandbox paused', 'sandbox resumed', 'snapshot taken'],
    );
    assert.doesNotMatch(JSON.stringify(logs), /hush|[0-9a-f]{64}/);
    await send('DELETE', `/sandboxes/${id}`);
    await assertRefused(await send('GET', `/v2/sandboxes/${id}/logs`), 404);
    await assertRefused(await send('GET', '/sandboxes/..%2fx/logs'), 404);
  });
});

describe('what needs the memory of a sandbox', () => {
  it('is refused without it, never done otherwise', async () => {
    const id = await create();
    const without = { memory: false };
    await assertRefused(await send('POST', `/sandboxes/${id}/pause`, without), 501, /memory: false/);
    await assertRefused(await send('POST', `/sandboxes/${id}/snapshots`, without), 501, /memory: false/);
    assert.equal(
      (await send('POST', `/v2/sandboxes/${id}/connect`, without)).status,
      200,
      'it runs: no reboot',
    );
    await send('POST', `/sandboxes/${id}/pause`, { memory: true });
    for (const path of [`/v2/sandboxes/${id}/connect`, `/sandboxes/${id}/connect`, `/sandboxes/${id}/resume`])
      await assertRefused(await send('POST', path, { timeout: 60, ...without }), 501, /memory: false/);
    assert.equal(gateway.state.sandboxes.get(id)!.state, 'paused');
  });
});

describe('the old routes', () => {
  it('resume a paused one for 15 s, and no other', async () => {
    const id = await create();
    await assertRefused(await send('POST', `/sandboxes/${id}/resume`, {}), 409);
    await send('POST', `/sandboxes/${id}/pause`);
    await assertRefused(await send('POST', `/sandboxes/${id}/resume`, { timeout: '60' }), 400, /timeout/);
    const resumed = await send('POST', `/sandboxes/${id}/resume`, { autoPause: true });
    assert.equal(resumed.status, 201);
    const leftSeconds = (gateway.state.sandboxes.get(id)!.endAtMs - Date.now()) / 1_000;
    assert.ok(leftSeconds > 10 && leftSeconds <= 15, String(leftSeconds));
    await assertRefused(await send('POST', '/sandboxes/i00000000000000000000/resume', {}), 404);
    await assertRefused(await send('POST', '/sandboxes/i00000000000000000000/refreshes', {}), 404);
  });

  it('list what runs; the new one also what is paused', async () => {
    const id = await create({ metadata: { mark: 'listed' } });
    await send('POST', `/sandboxes/${id}/pause`);
    const idsIn = async (path: string) =>
      (await read<{ sandboxID: string }[]>(`${path}?metadata=mark%3Dlisted`)).map(
        ({ sandboxID }) => sandboxID,
      );
    assert.deepEqual(await idsIn('/sandboxes'), []);
    assert.deepEqual(await idsIn('/v2/sandboxes'), [id]);
  });
});

describe('a pause that wants a healthy guest', () => {
  it('is made of one, and refused of another, which runs on', async () => {
    const id = await create();
    gateway.node.openPorts.delete(49983);
    const refused = await send('POST', `/sandboxes/${id}/pause`, { requireHealthyGuest: true });
    gateway.node.openPorts.add(49983);
    assert.match(refused.headers.get('retry-after')!, /^[1-9][0-9]*$/);
    await assertRefused(refused, 503, /does not answer/);
    assert.equal(gateway.state.sandboxes.get(id)!.state, 'running');
    assert.equal((await send('POST', `/sandboxes/${id}/pause`, { requireHealthyGuest: true })).status, 204);
    await assertRefused(await send('POST', `/sandboxes/${id}/pause`, { requireHealthyGuest: true }), 409);
  });
});

describe('headers of failures', () => {
  it('say whether a repetition can help', async () => {
    const failWith = async (error: ThawError) => {
      gateway.node.failures.set('createSandbox', error);
      const { status, headers } = await send('POST', '/v2/sandboxes', { templateID: 'base' });
      gateway.node.failures.clear();
      return [status, headers.get('should-retry'), headers.get('retry-after')];
    };
    assert.deepEqual(await failWith(new ThawError('no-capacity', 'full', { retryAfterSeconds: 1.2 })), [
      503,
      null,
      '2',
    ]);
    assert.deepEqual(await failWith(new ThawError('overloaded', 'queue')), [429, null, '1']);
    assert.deepEqual(await failWith(new ThawError('deadline-exceeded', 'late')), [504, null, null]);
    assert.deepEqual(await failWith(new ThawError('not-implemented', 'no')), [501, 'false', null]);
    const gone = await send('GET', '/sandboxes/i00000000000000000000');
    assert.equal(gone.headers.get('should-retry'), 'false');
    const dead = await fetch(`${gateway.url}/`, { headers: { 'e2b-sandbox-id': 'i00000000000000000000' } });
    assert.deepEqual([dead.status, dead.headers.get('should-retry')], [502, 'false']);
  });
});

describe('pages of snapshots', () => {
  it('neither repeat nor lose one when others go in between', async () => {
    const id = await create();
    const ids: string[] = [];
    for (let count = 0; count < 5; count++) {
      const answer = await send('POST', `/sandboxes/${id}/snapshots`, {});
      ids.unshift(((await answer.json()) as { snapshotID: string }).snapshotID);
    }
    const seen: string[] = [];
    let token: string | null = '';
    while (token !== null) {
      const response = await send(
        'GET',
        `/snapshots?sandboxID=${id}&limit=2${token && `&nextToken=${token}`}`,
      );
      token = response.headers.get('x-next-token');
      const rows = (await response.json()) as { snapshotID: string }[];
      seen.push(...rows.map(({ snapshotID }) => snapshotID));
      // The row that the token was made of goes away.
      await send('DELETE', `/templates/${seen.at(-1)}`);
    }
    assert.deepEqual([...seen].sort(), [...ids].sort());
    assert.equal(seen.length, 5);
    for (const bad of ['limit=0', 'limit=101', 'limit=a', 'nextToken=x', 'limit=1&limit=2'])
      await assertRefused(await send('GET', `/snapshots?${bad}`), 400);
  });
});

describe('metrics', () => {
  it('are of now, and none for another time', async () => {
    const id = await create();
    const now = Math.floor(Date.now() / 1_000);
    const ask = (query: string) => send('GET', `/sandboxes/${id}/metrics?${query}`);
    for (const bad of ['start=x', 'end=-1', `start=${now}&end=${now - 1}`, 'start=1&start=2'])
      await assertRefused(await ask(bad), 400);
    await send('POST', `/sandboxes/${id}/pause`);
    assert.deepEqual(await (await ask(`start=${now}`)).json(), []);
    for (const query of ['', '?sandbox_ids=', '?sandbox_ids=../x', `?sandbox_ids=${id}&sandbox_ids=x,y`])
      assert.deepEqual(await read(`/sandboxes/metrics${query}`), { sandboxes: {} });
  });
});

it('forgets the log of a sandbox that ended by itself', async () => {
  const id = await create({ timeout: 1 });
  await eventually('its end', () => gateway.state.sandboxes.get(id) === undefined);
  await assertRefused(await send('GET', `/sandboxes/${id}/logs`), 404);
});
