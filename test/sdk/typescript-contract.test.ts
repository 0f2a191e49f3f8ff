// Holds the TypeScript SDK to the wire: what each call sends, and what it makes of each answer.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  AuthenticationError,
  ConflictError,
  DeadlineExceededError,
  InvalidRequestError,
  NoCapacityError,
  NotFoundError,
  RateLimitError,
  Sandbox,
  Snapshots,
  ThawError,
  UnreachableError,
} from '../../sdk/typescript/index.ts';
import { ContractServer } from './contract-server.ts';

let server: ContractServer;
before(async () => {
  server = await new ContractServer().start();
});
after(() => server.close());

const apiKey = `e2b_${'0'.repeat(40)}`;
const options = () => ({ apiUrl: server.url, apiKey });
const id = `i${'a'.repeat(20)}`;
const connection = {
  sandboxID: id,
  templateID: 'base',
  clientID: 'thaw',
  envdVersion: '0.6.4',
  envdAccessToken: 'token',
};
async function sandbox(over: object = {}): Promise<Sandbox> {
  server.on('POST /v2/sandboxes', { status: 201, json: { ...connection, ...over } });
  return await Sandbox.create(options());
}

describe('what the TypeScript SDK sends', () => {
  it('creates from a template with the documented defaults', async () => {
    await sandbox();
    assert.deepEqual(server.last.json, { templateID: 'base', timeout: 300 });
    assert.equal(server.last.headers['x-api-key'], apiKey);
  });

  it('creates from a snapshot, with every option', async () => {
    server.on('POST /v2/sandboxes', { status: 201, json: connection });
    await Sandbox.create({
      ...options(),
      snapshotId: 'snap-1',
      timeoutMs: 1_500,
      metadata: { a: 'b' },
      envs: { K: 'V' },
      onTimeout: 'pause',
      autoResume: true,
      allowInternetAccess: false,
      network: { denyOut: ['10.0.0.0/8'] },
    });
    assert.deepEqual(server.last.json, {
      templateID: 'snap-1',
      timeout: 2,
      metadata: { a: 'b' },
      envVars: { K: 'V' },
      autoPause: true,
      autoResume: { enabled: true },
      allow_internet_access: false,
      network: { denyOut: ['10.0.0.0/8'] },
    });
  });

  it('takes address and key from the environment', async () => {
    const { THAW_API_URL, THAW_API_KEY } = process.env;
    try {
      Object.assign(process.env, { THAW_API_URL: `${server.url}/`, THAW_API_KEY: 'from-environment' });
      server.on('GET /v2/sandboxes', { status: 200, json: [] });
      assert.deepEqual(await Sandbox.list(), []);
      assert.equal(server.last.headers['x-api-key'], 'from-environment');
      delete process.env.THAW_API_KEY;
      await assert.rejects(Sandbox.list(), AuthenticationError);
      process.env.THAW_API_URL = 'nowhere';
      await assert.rejects(Sandbox.list({ apiKey }), InvalidRequestError);
    } finally {
      for (const [name, value] of Object.entries({ THAW_API_URL, THAW_API_KEY }))
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
    }
  });

  it('connects and resumes by the same call, and sets time-outs in whole seconds', async () => {
    server.on(`POST /v2/sandboxes/${id}/connect`, { status: 200, json: connection });
    const one = await Sandbox.connect(id, { ...options(), timeoutMs: 10_000 });
    assert.deepEqual(server.last.json, { timeout: 10 });
    await one.resume();
    assert.deepEqual(server.last.json, { timeout: 300 });
    server.on(`POST /sandboxes/${id}/timeout`, { status: 204 });
    await one.setTimeout(60_000);
    assert.deepEqual(server.last.json, { timeout: 60 });
  });

  it('lists page by page, with metadata encoded twice', async () => {
    const row = (name: string) => ({ ...connection, sandboxID: name, startedAt: '2026-01-02T03:04:05Z' });
    server.on(
      'GET /v2/sandboxes',
      { status: 200, json: [row('i1'), row('i2')], headers: { 'x-next-token': 'more' } },
      { status: 200, json: [row('i3')] },
    );
    const list = await Sandbox.list({
      ...options(),
      metadata: { 'a b': 'c&d' },
      state: ['running', 'paused'],
    });
    assert.deepEqual(
      list.map((info) => info.sandboxId),
      ['i1', 'i2', 'i3'],
    );
    assert.equal(list[0]!.startedAt.getTime(), Date.UTC(2026, 0, 2, 3, 4, 5));
    const { metadata, state, nextToken } = server.last.query;
    assert.deepEqual([metadata, state, nextToken], ['a%2520b=c%2526d', 'running,paused', 'more']);
  });

  it('stops listing at the limit', async () => {
    const json = [connection, connection];
    server.on('GET /v2/sandboxes', { status: 200, json, headers: { 'x-next-token': 'more' } });
    const before = server.asked.length;
    assert.equal((await Sandbox.list({ ...options(), limit: 3 })).length, 3);
    assert.equal(server.asked.length - before, 2);
  });

  it('takes, lists, inspects and deletes snapshots', async () => {
    const one = await sandbox();
    server.on(`POST /sandboxes/${id}/snapshots`, {
      status: 201,
      json: { snapshotID: 'snap-2', names: ['n'] },
    });
    const snapshot = await one.createSnapshot({ name: 'n' });
    assert.deepEqual(snapshot, { snapshotId: 'snap-2', names: ['n'] });
    assert.deepEqual(server.last.json, { name: 'n' });
    server.on('GET /snapshots', { status: 200, json: [{ snapshotID: 'snap-2', names: [] }] });
    assert.deepEqual(await one.listSnapshots(), [{ snapshotId: 'snap-2', names: [] }]);
    assert.deepEqual(server.last.query, { sandboxID: id });
    const snapshots = new Snapshots(options());
    const details = {
      snapshotId: 'snap-2',
      parent: 'snap-1',
      sizeBytes: 9,
      pauseMs: { total: 12 },
      compatibility: { cpu: 'x' },
    };
    server.on('GET /v1/snapshots/snap-2', { status: 200, json: details });
    const got = await snapshots.get('snap-2');
    assert.equal(got.parent, 'snap-1');
    assert.equal(got.uniqueBytes, undefined);
    assert.deepEqual(got.pauseMs, { total: 12 });
    server.on(
      'DELETE /templates/snap-2',
      { status: 204 },
      { status: 404, json: { code: 404, message: 'no' } },
    );
    assert.deepEqual([await snapshots.delete('snap-2'), await snapshots.delete('snap-2')], [true, false]);
  });

  it('pauses: 409 is "was paused before", 404 is an error', async () => {
    const one = await sandbox();
    server.on(
      `POST /sandboxes/${id}/pause`,
      { status: 204 },
      { status: 409, json: { code: 409, message: 'paused' } },
      { status: 404, json: { code: 404, message: 'gone' } },
    );
    assert.deepEqual([await one.pause(), await one.pause()], [true, false]);
    await assert.rejects(one.pause(), NotFoundError);
  });

  it('forks all or none', async () => {
    const one = await sandbox();
    const fork = { sandbox: { ...connection, sandboxID: 'ifork' } };
    server.on(`POST /sandboxes/${id}/fork`, { status: 201, json: [fork, fork] });
    assert.deepEqual(
      (await one.fork({ count: 2, timeoutMs: 5_000 })).map((made) => made.sandboxId),
      ['ifork', 'ifork'],
    );
    assert.deepEqual(server.last.json, { count: 2, timeout: 5 });
    const failed = { error: { code: 503, message: 'no room' } };
    server.on(`POST /sandboxes/${id}/fork`, { status: 201, json: [fork, failed] });
    server.on('DELETE /sandboxes/ifork', { status: 204 });
    await assert.rejects(one.fork({ count: 2 }), NoCapacityError);
    assert.deepEqual([server.last.method, server.last.path], ['DELETE', '/sandboxes/ifork']);
  });

  it('says by which name a port is reached', async () => {
    assert.equal((await sandbox()).getHost(3000), `3000-${id}.localhost:${new URL(server.url).port}`);
    assert.equal((await sandbox({ domain: 'thaw.example:8443' })).getHost(80), `80-${id}.thaw.example:8443`);
  });
});

describe('what the TypeScript SDK makes of failures', () => {
  const failing = (answer: Parameters<ContractServer['on']>[1]) => {
    server.on('GET /v2/sandboxes', answer);
    return Sandbox.list({ ...options(), requestTimeoutMs: 200 });
  };

  it('has a class for each, with code, request id and how long to wait', async () => {
    const headers = { 'x-thaw-error': 'no-capacity', 'retry-after': '7', 'x-request-id': 'r1' };
    await assert.rejects(failing({ status: 503, headers, json: { code: 503, message: 'full' } }), (error) => {
      assert.ok(error instanceof NoCapacityError);
      const { code, status, retryable, retryAfterMs, requestId, message } = error;
      assert.deepEqual(
        { code, status, retryable, retryAfterMs, requestId, message },
        {
          code: 'no-capacity',
          status: 503,
          retryable: true,
          retryAfterMs: 7_000,
          requestId: 'r1',
          message: 'full',
        },
      );
      return true;
    });
    await assert.rejects(failing({ status: 429, headers: { 'retry-after': '1' } }), RateLimitError);
    await assert.rejects(failing({ status: 401, json: { code: 401, message: 'who?' } }), AuthenticationError);
    await assert.rejects(failing({ status: 409 }), ConflictError);
  });

  it('is told when repeating cannot help', async () => {
    const error = await failing({ status: 503, headers: { 'should-retry': 'false' } }).catch(
      (cause) => cause,
    );
    assert.equal((error as ThawError).retryable, false);
  });

  it('ends a wait at its deadline, or when the caller aborts', async () => {
    await assert.rejects(failing({ status: 200, hang: true }), DeadlineExceededError);
    const abort = new AbortController();
    const listing = Sandbox.list({ ...options(), signal: abort.signal });
    abort.abort(new Error('enough'));
    await assert.rejects(listing, /enough/);
  });

  it('tells a broken connection from a server that is not there', async () => {
    await assert.rejects(failing({ status: 200, bytes: Buffer.from('[{'), cut: true }), (error) => {
      assert.ok(error instanceof UnreachableError);
      assert.equal(error.code, 'connection-lost');
      return true;
    });
    const nobody = { apiUrl: 'http://127.0.0.1:9', apiKey };
    await assert.rejects(Sandbox.list(nobody), (error) => {
      assert.ok(error instanceof UnreachableError);
      assert.equal(error.code, 'unreachable');
      assert.match(error.message, /nothing answers on http:\/\/127\.0\.0\.1:9/);
      return true;
    });
  });

  it('refuses streams that end early or are none', async () => {
    const one = await sandbox();
    server.on('GET /health', { status: 204 });
    const start = Buffer.from(JSON.stringify({ event: { start: { pid: 1 } } }));
    const frame = Buffer.concat([Buffer.from([0, 0, 0, 0, start.length]), start]);
    server.on('POST /process.Process/Start', { status: 200, bytes: frame });
    await assert.rejects(one.commands.run('x'), (error) => (error as ThawError).code === 'connection-lost');
    server.on('GET /health', { status: 502, json: { code: 502, message: 'The sandbox was not found' } });
    await assert.rejects(one.commands.run('x'), NotFoundError);
    server.on('POST /process.Process/Start', { status: 200, bytes: Buffer.from('HTTP/1.1 what?') });
    await assert.rejects(one.commands.run('x'), ThawError);
    server.on('POST /process.Process/Start', { status: 200, bytes: Buffer.from([0, 0, 0, 0, 1, 0x7b]) });
    await assert.rejects(one.commands.run('x'), ThawError);
  });
});
