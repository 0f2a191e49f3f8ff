import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { connect } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { WebSocket, WebSocketServer } from 'ws';
import { ThawError } from '../../../shared/errors.ts';
import { registry } from '../../../shared/metrics.ts';
import { collectGarbage } from '../collect-garbage.ts';
import { eventually } from '../eventually.ts';
import { type GatewayForTests, startGateway } from '../gateway-for-tests.ts';
import type { Echo } from '../simulated-node-client.ts';
import { targetOf } from './invoke.ts';

let gateway: GatewayForTests;
before(async () => {
  gateway = await startGateway({ drainTimeoutMs: 500 });
  await gateway.deployEcho('echo');
  await gateway.deployEcho('locked', { auth: 'key' });
  await gateway.deployEcho('hasty', { timeoutMs: 100 });
});
after(() => gateway.close());

const get = (path: string, headers: Record<string, string> = {}) =>
  fetch(`${gateway.url}${path}`, { headers });
const echo = async (path: string, init?: RequestInit): Promise<Echo> =>
  (await (await fetch(`${gateway.url}${path}`, init)).json()) as Echo;

async function assertProblem(
  response: Response,
  status: number,
  code: string,
): Promise<Record<string, unknown>> {
  const body = (await response.json()) as Record<string, unknown>;
  assert.equal(response.status, status, JSON.stringify(body));
  assert.equal(response.headers.get('content-type'), 'application/problem+json');
  assert.equal(response.headers.get('x-thaw-error'), code);
  assert.equal(body.code, code);
  assert.equal(body.status, status);
  assert.equal(body.requestId, response.headers.get('x-request-id'));
  assert.equal(typeof body.retryable, 'boolean');
  return body;
}

/** A raw exchange, for what fetch will not send or show. */
function raw(text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(gateway.port, '127.0.0.1', () => socket.write(text));
    let answer = '';
    socket.on('data', (chunk) => {
      answer += chunk.toString('latin1');
    });
    socket.on('end', () => resolve(answer));
    socket.on('error', reject);
  });
}

describe('the target of an invocation', () => {
  it('splits name, version and path', () => {
    assert.deepEqual(targetOf('/fn/a'), { name: 'a', version: undefined, path: '/' });
    assert.deepEqual(targetOf('/fn/a?x=1'), { name: 'a', version: undefined, path: '/?x=1' });
    assert.deepEqual(targetOf('/fn/a-b@12/c//d?e'), { name: 'a-b', version: 12, path: '/c//d?e' });
    assert.deepEqual(targetOf('/fn/a/..%2f@1'), { name: 'a', version: undefined, path: '/..%2f@1' });
    for (const bad of [
      '/fn/',
      '/fn/A',
      '/fn/a%00',
      '/fn/-a',
      '/fn/a@',
      '/fn/a@0',
      '/fn/a@1x',
      '/fn/../x',
      `/fn/${'a'.repeat(64)}`,
    ])
      assert.throws(
        () => targetOf(bad),
        (error) => error instanceof ThawError && error.code === 'bad-name',
        bad,
      );
  });
});

describe('invocations', () => {
  it('pass method, path, query, headers and body through', async () => {
    const body = Buffer.from('some body');
    const seen = await echo('/fn/echo/a/b%20c?d=e&d=f', {
      method: 'PATCH',
      body,
      headers: { 'x-own': 'yes' },
    });
    assert.equal(seen.method, 'PATCH');
    assert.equal(seen.url, '/a/b%20c?d=e&d=f');
    assert.equal(seen.headers['x-own'], 'yes');
    assert.equal(seen.headers['content-length'], '9');
    assert.equal(seen.bodySha256, createHash('sha256').update(body).digest('hex'));
    assert.equal((await echo('/fn/echo@1')).url, '/');
  });

  it('tell the stages, the tier and the request id', async () => {
    const response = await get('/fn/echo/', { 'x-request-id': 'mine_1' });
    const timing = response.headers.get('server-timing')!;
    for (const stage of ['queue', 'place', 'lease', 'exec', 'total'])
      assert.match(timing, new RegExp(`${stage};dur=[0-9.]+`));
    assert.match(timing, /tier;desc=warm/);
    assert.equal(response.headers.get('x-thaw-tier'), 'warm');
    assert.equal(response.headers.get('x-request-id'), 'mine_1');
    const made = await get('/fn/echo/', { 'x-request-id': 'not valid!' });
    assert.match(made.headers.get('x-request-id')!, /^[0-9a-f]{24}$/);
    assert.equal(((await made.json()) as Echo).headers['x-request-id'], made.headers.get('x-request-id'));
  });

  it('pass a valid trace context on and replace an invalid one', async () => {
    const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
    const kept = await echo('/fn/echo/', { headers: { traceparent, tracestate: 'a=b' } });
    assert.equal(kept.headers.traceparent, traceparent);
    assert.equal(kept.headers.tracestate, 'a=b');
    const made = await echo('/fn/echo/', { headers: { traceparent: '00-bad', tracestate: 'a=b' } });
    assert.match(String(made.headers.traceparent), /^00-[0-9a-f]{32}-[0-9a-f]{16}-00$/);
    assert.equal(made.headers.tracestate, undefined);
  });

  it('keep hop-by-hop and internal headers from crossing, both ways', async () => {
    const answer = await raw(
      'GET /fn/echo/ HTTP/1.1\r\nHost: site.test\r\nConnection: close, X-Private\r\nX-Private: 1\r\n' +
        'Keep-Alive: timeout=1\r\nTE: trailers\r\nProxy-Authorization: Basic eA==\r\nX-Thaw-Secret: guess\r\n' +
        'X-Thaw-Tier: x\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Multi: a\r\nX-Multi: b\r\n\r\n',
    );
    const { headers } = JSON.parse(answer.slice(answer.indexOf('{'), answer.lastIndexOf('}') + 1)) as Echo;
    for (const name of [
      'x-private',
      'keep-alive',
      'te',
      'proxy-authorization',
      'x-thaw-secret',
      'x-thaw-tier',
      'forwarded',
    ])
      assert.equal(headers[name], undefined, name);
    assert.equal(headers.host, 'site.test');
    assert.equal(headers['x-forwarded-for'], '127.0.0.1');
    assert.equal(headers['x-forwarded-proto'], 'http');
    assert.equal(headers['x-forwarded-host'], 'site.test');
    assert.equal(headers['x-multi'], 'a, b');
    const hops = [
      'connection:x-gone',
      'x-gone:1',
      'keep-alive:timeout=9',
      'proxy-authenticate:Basic',
      'x-thaw-tier:boot',
      'x-thaw-error:no-capacity',
      'x-kept:1',
      'set-cookie:a=1',
      'set-cookie:b=2',
    ];
    const query = hops.map((line) => `h=${encodeURIComponent(line)}`).join('&');
    const response = await get(`/fn/echo/answer?status=418&body=tea&${query}`);
    assert.equal(response.status, 418);
    assert.equal(await response.text(), 'tea');
    for (const name of ['x-gone', 'proxy-authenticate', 'x-thaw-error'])
      assert.equal(response.headers.get(name), null, name);
    assert.equal(response.headers.get('x-thaw-tier'), 'warm');
    assert.equal(response.headers.get('x-kept'), '1');
    assert.deepEqual(response.headers.getSetCookie(), ['a=1', 'b=2']);
  });

  it("let a function's own failure through, marked by its runner", async () => {
    const response = await get('/fn/echo/answer?status=500&h=x-thaw-error%3Ahandler-threw&body=oops');
    assert.equal(response.status, 500);
    assert.equal(response.headers.get('x-thaw-error'), 'handler-threw');
    assert.equal(await response.text(), 'oops');
    assert.match(
      await registry.metrics(),
      /thaw_invocation_duration_seconds_count\{tier="warm",outcome="function-error"\} [1-9]/,
    );
  });

  it('answer 404, 400, 401 and 504 as problems', async () => {
    await assertProblem(await get('/fn/nobody/x'), 404, 'function-not-found');
    await assertProblem(await get('/fn/echo@99/x'), 404, 'function-not-found');
    await assertProblem(await get('/fn/Echo/x'), 400, 'bad-name');
    await assertProblem(await get('/nowhere'), 404, 'not-found');
    const late = await assertProblem(await get('/fn/hasty/never'), 504, 'deadline-exceeded');
    assert.equal(late.retryable, true);
  });

  it('need a key where the manifest says so, and keep it from the function', async () => {
    await assertProblem(await get('/fn/locked/'), 401, 'unauthenticated');
    await assertProblem(
      await get('/fn/locked/', { 'x-api-key': `e2b_${'0'.repeat(40)}` }),
      401,
      'unauthenticated',
    );
    const { apiKey } = gateway;
    const direct = await echo('/fn/locked/', {
      headers: { 'x-api-key': apiKey, authorization: 'Basic own' },
    });
    assert.equal(direct.headers['x-api-key'], undefined);
    assert.equal(direct.headers.authorization, 'Basic own');
    const bearer = await echo('/fn/locked/', {
      headers: { authorization: `Bearer ${apiKey}`, 'x-api-key': apiKey },
    });
    assert.ok(!JSON.stringify(bearer.rawHeaders).includes(apiKey));
    const open = await echo('/fn/echo/', { headers: { 'x-api-key': 'its own' } });
    assert.equal(open.headers['x-api-key'], 'its own');
  });

  it('turn platform failures into problems with Retry-After where waiting helps', async () => {
    const failures: [ThawError, number, string | null][] = [
      [new ThawError('overloaded', 'queue full', { retryAfterSeconds: 3 }), 429, '3'],
      [new ThawError('no-capacity', 'no VM'), 503, '1'],
      [new ThawError('vm-died', 'gone'), 502, null],
    ];
    for (const [failure, status, retryAfter] of failures) {
      gateway.node.failures.set('invoke', failure);
      const response = await fetch(`${gateway.url}/fn/echo/`, { method: 'POST', body: 'x'.repeat(300_000) });
      gateway.node.failures.clear();
      assert.equal(response.headers.get('retry-after'), retryAfter);
      const body = await assertProblem(response, status, failure.code);
      assert.equal(body.retryable, true);
    }
    gateway.node.failures.set('invoke', new TypeError('inner words') as never);
    const body = await assertProblem(await get('/fn/echo/'), 500, 'internal');
    gateway.node.failures.clear();
    assert.ok(!JSON.stringify(body).includes('inner words'));
  });

  it('stream events as they come', async () => {
    const response = await get('/fn/echo/events');
    const chunks: string[] = [];
    for await (const chunk of response.body!) chunks.push(Buffer.from(chunk).toString());
    assert.equal(chunks.join(''), 'data: 0\n\ndata: 1\n\ndata: 2\n\n');
    assert.ok(chunks.length >= 3, `came in ${chunks.length} pieces`);
  });

  it('stream 100 MB up and down at once with flat memory', async () => {
    const totalBytes = 100 * 1024 * 1024;
    const chunk = Buffer.alloc(256 * 1024, 'y');
    let peakBytes = 0;
    const base = process.memoryUsage().rss;
    const request = httpRequest(`${gateway.url}/fn/echo/pipe`, { method: 'POST' });
    const answered = new Promise<IncomingMessage>((resolve, reject) => {
      request.on('response', resolve);
      request.on('error', reject);
    });
    const upload = (async () => {
      for (let sentBytes = 0; sentBytes < totalBytes; sentBytes += chunk.length)
        if (!request.write(chunk)) await new Promise((resolve) => request.once('drain', resolve));
      request.end();
    })();
    let receivedBytes = 0;
    let collectedAtBytes = 0;
    for await (const piece of await answered) {
      receivedBytes += piece.length;
      if (receivedBytes - collectedAtBytes >= 4 * 1024 * 1024) {
        collectGarbage();
        collectedAtBytes = receivedBytes;
      }
      peakBytes = Math.max(peakBytes, process.memoryUsage().rss - base);
    }
    await upload;
    assert.equal(receivedBytes, totalBytes);
    // Client, gateway and guest share this process; one copy of the body would be 100 MB.
    assert.ok(peakBytes < 90 * 1024 * 1024, `grew by ${Math.round(peakBytes / 1024 / 1024)} MB`);
  });

  it('hold a fast guest back while the client does not read', async () => {
    const totalBytes = 200 * 1024 * 1024;
    const base = process.memoryUsage().rss;
    const response = await new Promise<IncomingMessage>((resolve) =>
      httpRequest(`${gateway.url}/fn/echo/flood?bytes=${totalBytes}`, { agent: false }, resolve).end(),
    );
    const socket = response.socket;
    await eventually('the flow stands still', async () => {
      const beforeBytes = socket.bytesRead;
      await new Promise((resolve) => setTimeout(resolve, 100));
      return socket.bytesRead === beforeBytes;
    });
    assert.ok(socket.bytesRead < totalBytes / 4, `read ${socket.bytesRead}`);
    assert.ok(process.memoryUsage().rss - base < 90 * 1024 * 1024);
    response.destroy();
    await eventually('the guest hears of it', () =>
      gateway.node.aborted.some((url) => url.startsWith('/flood')),
    );
  });

  it('end the work when the client goes, before and during the answer', async () => {
    const leaving = new AbortController();
    const pending = fetch(`${gateway.url}/fn/echo/never?left`, { signal: leaving.signal }).catch(
      () => 'left',
    );
    await new Promise((resolve) => setTimeout(resolve, 50));
    leaving.abort();
    assert.equal(await pending, 'left');
    await eventually('the guest hears of it', () => gateway.node.aborted.includes('/never?left'));
    assert.match(await registry.metrics(), /tier="none",outcome="client-gone"\} [1-9]/);
  });

  it('cut the connection when the guest breaks off its answer', async () => {
    const response = await get('/fn/echo/cut');
    await assert.rejects(response.text());
  });

  it('answer HEAD and empty statuses without a body', async () => {
    const head = await fetch(`${gateway.url}/fn/echo/flood?bytes=1000`, { method: 'HEAD' });
    assert.equal(head.status, 200);
    assert.equal(await head.text(), '');
    const empty = await get('/fn/echo/answer?status=204');
    assert.equal(empty.status, 204);
    assert.equal((await get('/fn/echo/answer?status=304')).status, 304);
  });

  it('keep the bytes of header values that are not ASCII', async () => {
    const answer = await raw(
      `GET /fn/echo/answer?${new URLSearchParams({ h: `x-name:${Buffer.from('naïve 日本').toString('latin1')}` })} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`,
    );
    assert.match(answer, /^HTTP\/1\.1 200/);
    assert.equal(/x-name: (.*)\r\n/i.exec(answer)?.[1], Buffer.from('naïve 日本').toString('latin1'));
  });

  it('pass upgrades through, rewritten, and refuse them as problems', async () => {
    const socket = connect(gateway.port, '127.0.0.1');
    socket.write(
      'GET /fn/echo/chat?room=1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Thaw-Secret: guess\r\nSec-WebSocket-Key: k\r\n\r\nearly',
    );
    let text = '';
    socket.on('data', (chunk) => {
      text += chunk;
    });
    await eventually('the early bytes come back', () => text.endsWith('early'));
    assert.match(text, /^HTTP\/1\.1 101 /);
    const seen = JSON.parse(text.slice(text.indexOf('{'), text.lastIndexOf('}') + 1)) as Echo;
    assert.equal(seen.url, '/chat?room=1');
    assert.equal(seen.headers['x-thaw-secret'], undefined);
    assert.equal(seen.headers['sec-websocket-key'], 'k');
    assert.match(String(seen.headers.traceparent), /^00-/);
    socket.write(' and later');
    await eventually('later bytes come back', () => text.endsWith(' and later'));
    socket.destroy();
    const upgradeTo = (path: string) =>
      raw(`GET ${path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`);
    assert.match(await upgradeTo('/fn/nobody/'), /^HTTP\/1\.1 404 [\s\S]*"code":"function-not-found"/);
    assert.match(await upgradeTo('/fn/locked/'), /^HTTP\/1\.1 401 [\s\S]*"code":"unauthenticated"/);
    assert.match(await upgradeTo('/v1/functions'), /^HTTP\/1\.1 404 /);
    const plain = await raw(
      'GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n',
    );
    assert.match(plain, /^HTTP\/1\.1 200 /);
  });

  it('are limited in number, upgraded connections included', async () => {
    const small = await startGateway({ maxInFlight: 2 });
    await small.deployEcho('echo');
    const leaving = new AbortController();
    const held = fetch(`${small.url}/fn/echo/never`, { signal: leaving.signal }).catch(() => {});
    const socket = connect(small.port, '127.0.0.1');
    socket.write('GET /fn/echo/ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n');
    await new Promise((resolve) => socket.once('data', resolve));
    const statusOf = async () => (await fetch(`${small.url}/fn/echo/`)).status;
    await eventually('the limit is reached', async () => (await statusOf()) === 429);
    const refused = await fetch(`${small.url}/fn/echo/`);
    assert.equal(refused.headers.get('retry-after'), '1');
    await assertProblem(refused, 429, 'overloaded');
    assert.equal((await fetch(`${small.url}/health`)).status, 200);
    socket.destroy();
    await eventually('there is room again', async () => (await statusOf()) === 200);
    leaving.abort();
    await held;
    await small.close();
  });

  it('refuse work while draining, let what runs finish, then close', async () => {
    const draining = await startGateway({ drainTimeoutMs: 300 });
    await draining.deployEcho('echo');
    const running = fetch(`${draining.url}/fn/echo/?waitMs=150`);
    const stuck = fetch(`${draining.url}/fn/echo/never`).catch(() => 'cut');
    await new Promise((resolve) => setTimeout(resolve, 50));
    const closed = draining.close();
    assert.equal((await running).status, 200);
    assert.equal(await stuck, 'cut');
    await closed;
  });
});

describe('websockets', () => {
  it('work end to end with a real client and server', async () => {
    // The simulated guest answers upgrades without speaking WebSocket; this one does.
    const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
    await new Promise((resolve) => server.once('listening', resolve));
    server.on('connection', (peer) => peer.on('message', (data) => peer.send(`got ${data}`)));
    const { port } = server.address() as { port: number };
    gateway.node.upgrade = async (_version, request, path, socket, head) => {
      const guest = connect(port, '127.0.0.1');
      const lines = request.rawHeaders.flatMap((name, at) =>
        at % 2 ? [] : [`${name}: ${request.rawHeaders[at + 1]}`],
      );
      guest.write(`GET ${path} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`);
      guest.write(head);
      guest.pipe(socket).pipe(guest);
      socket.on('close', () => guest.destroy());
      guest.on('error', () => socket.destroy());
    };
    const client = new WebSocket(`ws://127.0.0.1:${gateway.port}/fn/echo/ws`);
    const message = new Promise((resolve) => client.on('message', (data) => resolve(String(data))));
    client.on('open', () => client.send('hello'));
    assert.equal(await message, 'got hello');
    client.terminate();
    await new Promise((resolve) => server.close(resolve));
  });
});
