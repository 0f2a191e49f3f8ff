// Tests functions as the host meets them: bundle in, runner ready, requests both ways, failures told.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { pack } from 'tar-stream';
import { WebSocket } from 'ws';
import type { LogEvent } from '../../shared/agent-protocol.ts';
import { AgentFixture } from './agent-fixture.ts';

async function tarOf(files: Record<string, string>): Promise<Uint8Array<ArrayBuffer>> {
  const archive = pack();
  for (const [name, content] of Object.entries(files)) archive.entry({ name }, content);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive) chunks.push(chunk as Buffer);
  return new Uint8Array(Buffer.concat(chunks));
}

const put = async (agent: AgentFixture, files: Record<string, string>) => {
  const response = await agent.internal('PUT', '/_thaw/bundle', await tarOf(files));
  assert.equal(response.status, 204, await response.text());
};
const call = (agent: AgentFixture, path: string, init: RequestInit = {}) =>
  fetch(`http://127.0.0.1:${agent.ports.runner}${path}`, init);

const nodeFunction = `
import { createHash, randomUUID } from 'node:crypto';
let aborted = 0;
export default {
  async fetch(request, env, ctx) {
    const { pathname, searchParams } = new URL(request.url);
    if (pathname === '/throw') throw new Error('deliberate failure in the handler');
    if (pathname === '/nothing') return undefined;
    if (pathname === '/env') return Response.json({ mine: env.MINE, port: env.PORT });
    if (pathname === '/method') return new Response(null, { status: 204, headers: { 'x-method': request.method } });
    if (pathname === '/hash') {
      const hash = createHash('sha256');
      for await (const chunk of request.body) hash.update(chunk);
      return new Response(hash.digest('hex'));
    }
    if (pathname === '/echo') return new Response(request.body, { status: 201, statusText: 'Echoed' });
    if (pathname === '/cookies') {
      const headers = new Headers({ 'x-seen': request.headers.get('x-twice') });
      headers.append('set-cookie', 'a=1'); headers.append('set-cookie', 'b=2');
      return new Response('ok', { headers });
    }
    if (pathname === '/zeros') {
      let left = Number(searchParams.get('bytes'));
      return new Response(new ReadableStream({ pull(c) {
        if (left <= 0) return c.close();
        c.enqueue(new Uint8Array(Math.min(65536, left))); left -= 65536;
      } }));
    }
    if (pathname === '/events') {
      request.signal.addEventListener('abort', () => { aborted++; });
      let count = 0;
      return new Response(new ReadableStream({ async pull(c) {
        if (count > 0) await new Promise((go) => setTimeout(go, 50));
        c.enqueue(new TextEncoder().encode('data: ' + count++ + '\\n\\n'));
      } }), { headers: { 'content-type': 'text/event-stream' } });
    }
    if (pathname === '/silent') return new Response(new ReadableStream({}), { status: 202 });
    if (pathname === '/aborted') return new Response(String(aborted));
    if (pathname === '/log') { console.log('a line from the function'); console.error('wörds'); return new Response('x'); }
    if (pathname === '/flood') { for (let i = 0; i < 5000; i++) console.log('flood ' + i); return new Response('x'); }
    if (pathname === '/exit') { setImmediate(() => process.exit(9)); return new Response('x'); }
    if (pathname === '/wait') { ctx.waitUntil(Promise.reject(new Error('late failure'))); return new Response('x'); }
    return new Response(randomUUID() + ' ' + Math.random());
  },
  upgrade(request, socket) {
    socket.write('HTTP/1.1 101 Switching Protocols\\r\\nconnection: upgrade\\r\\nupgrade: echo\\r\\n\\r\\n');
    socket.pipe(socket);
  },
};
console.log('loading', process.env.MINE);
`;

describe('a Node function', () => {
  let agent: AgentFixture;
  before(async () => {
    agent = await AgentFixture.start('ready');
    await put(agent, { 'index.mjs': nodeFunction, 'sub/data.txt': 'x' });
    const { outcome, output } = await agent.startRunner({ runtime: 'node', env: { MINE: 'yes' } });
    assert.equal(outcome.type, 'ready', output);
    assert.match(output, /loading yes/);
  });
  after(() => agent?.[Symbol.asyncDispose]());

  it('answers with its environment, method, headers and status', async () => {
    assert.deepEqual(await (await call(agent, '/env')).json(), {
      mine: 'yes',
      port: String(agent.ports.runner),
    });
    const method = await call(agent, '/method', { method: 'PATCH' });
    assert.deepEqual([method.status, method.headers.get('x-method')], [204, 'PATCH']);
    const cookies = await call(agent, '/cookies', {
      headers: [
        ['x-twice', '1'],
        ['x-twice', '2'],
      ],
    });
    assert.deepEqual(cookies.headers.getSetCookie(), ['a=1', 'b=2']);
    assert.deepEqual([cookies.headers.get('x-seen'), cookies.headers.get('content-length')], ['1, 2', '2']);
    const echo = await call(agent, '/echo', { method: 'POST', body: 'back' });
    assert.deepEqual([echo.status, echo.statusText, await echo.text()], [201, 'Echoed', 'back']);
    const head = await call(agent, '/zeros?bytes=10', { method: 'HEAD' });
    assert.deepEqual([head.status, await head.text()], [200, '']);
  });

  it('streams 100 MB in and 100 MB out', async () => {
    const chunk = new Uint8Array(1024 * 1024).fill(5);
    let left = 100;
    const body = new ReadableStream({
      pull(controller) {
        if (left-- === 0) controller.close();
        else controller.enqueue(chunk);
      },
    });
    const digest = createHash('sha256');
    for (let count = 0; count < 100; count++) digest.update(chunk);
    const hash = await call(agent, '/hash', { method: 'POST', body, duplex: 'half' } as RequestInit);
    assert.equal(await hash.text(), digest.digest('hex'));
    let sizeBytes = 0;
    for await (const part of (await call(agent, `/zeros?bytes=${100 * 1024 * 1024}`)).body!)
      sizeBytes += part.length;
    assert.equal(sizeBytes, 100 * 1024 * 1024);
  });

  it('marks what the handler did wrong and keeps the stack out of the answer', async () => {
    for (const path of ['/throw', '/nothing']) {
      const response = await call(agent, path);
      assert.deepEqual([response.status, response.headers.get('x-thaw-error')], [500, 'handler-threw']);
      assert.doesNotMatch(await response.text(), /deliberate|index\.mjs/);
    }
    const isStack = (event: unknown) => /deliberate failure/.test((event as LogEvent).line ?? '');
    await agent.eventually('the stack in the log', () => agent.events.some(isStack));
  });

  it('passes events as they come and aborts when the client leaves', async () => {
    const response = await call(agent, '/events');
    const reader = response.body!.getReader();
    for (let count = 0; count < 3; count++)
      assert.equal(Buffer.from((await reader.read()).value!).toString(), `data: ${count}\n\n`);
    await reader.cancel();
    const end = performance.now() + 10_000;
    while ((await (await call(agent, '/aborted')).text()) !== '1') assert.ok(performance.now() < end);
  });

  it('sends the status before a body that is long in coming', async () => {
    const leave = new AbortController();
    assert.equal((await call(agent, '/silent', { signal: leave.signal })).status, 202);
    leave.abort();
  });

  it('hands upgrades to the function', async () => {
    const socket = connect(agent.ports.runner, '127.0.0.1');
    socket.setEncoding('utf8');
    socket.write('GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n');
    const heard = async () => String(await new Promise((resolve) => socket.once('data', resolve)));
    assert.match(await heard(), /^HTTP\/1.1 101/);
    socket.write('over the wire');
    assert.equal(await heard(), 'over the wire');
    socket.destroy();
  });

  it('tells the log by lines, with the rest counted when there are too many', async () => {
    await (await call(agent, '/log')).text();
    const logged = (stream: string, line: string) =>
      agent.events.some((event) => event.event === 'log' && event.stream === stream && event.line === line);
    await agent.eventually(
      'both lines',
      () => logged('stdout', 'a line from the function') && logged('stderr', 'wörds'),
    );
    await new Promise((resolve) => setTimeout(resolve, 1100));
    await (await call(agent, '/flood')).text();
    await new Promise((resolve) => setTimeout(resolve, 1100));
    await (await call(agent, '/log')).text();
    await agent.eventually('the count', () =>
      agent.events.some((event) => event.event === 'log' && event.dropped),
    );
    const flood = agent.events.filter((event) => event.event === 'log' && event.line.startsWith('flood'));
    const dropped = agent.events.reduce((sum, event) => sum + ((event as LogEvent).dropped ?? 0), 0);
    assert.equal(flood.length + dropped, 5000);
    assert.ok(dropped > 0);
  });

  it('is reseeded with the restore and answers on after a seal', async () => {
    assert.equal((await agent.request({ op: 'seal', nonce: 'warm' })).ok, true);
    const reply = await agent.restore();
    assert.deepEqual([reply.ok, reply.nonce], [true, 'warm']);
    assert.equal(agent.ports.runner, (reply.ports as { runner: number }).runner);
    assert.match(await (await call(agent, '/')).text(), /^[0-9a-f-]{36} 0\./);
  });

  it('fails the restore when the program hangs', async () => {
    const pid = spawnSync('pgrep', ['-P', String(agent.pid), '-f', 'node-runner'])
      .stdout.toString()
      .trim();
    assert.match(pid, /^\d+$/);
    await agent.request({ op: 'seal', nonce: 'warm' });
    process.kill(Number(pid), 'SIGSTOP');
    const reply = await agent.restore();
    process.kill(Number(pid), 'SIGCONT');
    assert.equal(reply.ok, false);
    assert.match(String(reply.message), /1 of 1 processes were not reseeded/);
    assert.equal((await agent.request({ op: 'health' })).state, 'sealed');
    assert.equal((await agent.restore()).ok, true);
  });

  it('is started again by an agent on the same root, before it answers restore', async () => {
    await agent.request({ op: 'seal', nonce: 'kept' });
    await agent.end();
    await agent.boot();
    const reply = await agent.restore();
    assert.deepEqual([reply.ok, reply.nonce], [true, 'kept']);
    assert.deepEqual((await (await call(agent, '/env')).json()) as object, {
      mine: 'yes',
      port: String(agent.ports.runner),
    });
  });

  it('tells when the program ends', async () => {
    await (await call(agent, '/exit')).text();
    const exit = { event: 'runner-exit', exitCode: 9, signal: null } as const;
    await agent.eventually('the exit event', () =>
      agent.events.some((event) => event.event === 'runner-exit'),
    );
    assert.deepEqual(
      agent.events.find((event) => event.event === 'runner-exit'),
      exit,
    );
    await agent.request({ op: 'seal', nonce: 'n' });
    assert.equal(((await agent.restore()).ports as { runner: number }).runner, 0);
  });
});

describe('starting a program', () => {
  let agent: AgentFixture;
  before(async () => {
    agent = await AgentFixture.start('ready');
  });
  after(() => agent?.[Symbol.asyncDispose]());

  it('builds first, then serves any program that listens on PORT', async () => {
    const server = `require('http').createServer((q, s) => s.end(require('fs').readFileSync('built'))).listen(process.env.PORT)`;
    await put(agent, { 'server.cjs': server });
    const { outcome, output } = await agent.startRunner({
      runtime: 'command',
      command: ['node', 'server.cjs'],
      build: ['sh', '-c', 'echo building; echo made > built'],
    });
    assert.equal(outcome.type, 'ready', output);
    assert.equal(output, 'building\n');
    assert.equal(await (await call(agent, '/')).text(), 'made\n');
  });

  it('replaces the bundle and the program', async () => {
    await put(agent, { 'index.ts': 'export default (request: Request): Response => new Response("typed")' });
    assert.deepEqual(await readdir(join(agent.rootDir, 'function')), ['index.ts']);
    assert.equal((await agent.startRunner({ runtime: 'node' })).outcome.type, 'ready');
    assert.equal(await (await call(agent, '/')).text(), 'typed');
    assert.equal(
      agent.events.filter((event) => event.event === 'runner-exit').length,
      0,
      'told to stop: no event',
    );
  });

  it('says what failed, with the output', async () => {
    const fails = async (spec: object, stage: string, message: RegExp, said: RegExp) => {
      const { outcome, output } = await agent.startRunner(spec);
      assert.equal(outcome.type, 'failed', JSON.stringify(outcome));
      assert.ok(outcome.type === 'failed' && outcome.stage === stage);
      assert.match(outcome.type === 'failed' ? outcome.message : '', message);
      assert.match(output, said);
    };
    await put(agent, { 'index.js': 'throw new Error("broken at load")', 'other.js': 'export default 5' });
    await fails({ runtime: 'node' }, 'start', /exit code 1/, /broken at load/);
    await fails({ runtime: 'node', entry: 'other.js' }, 'start', /exit code 1/, /expected "export default/);
    await fails({ runtime: 'node', entry: 'absent.js' }, 'start', /exit code 1/, /no entry/);
    await fails({ runtime: 'command', command: ['/no/such'] }, 'start', /ENOENT/, /^$/);
    await fails({ runtime: 'command' }, 'start', /needs a command/, /^$/);
    await fails(
      { runtime: 'node', build: ['sh', '-c', 'echo no >&2; exit 4'] },
      'build',
      /exit code 4/,
      /^no\n$/,
    );
    const silent = { runtime: 'command', command: ['sleep', '60'], startTimeoutMs: 300 };
    await fails(silent, 'start', /no answer on port \d+ within 300 ms/, /^$/);
  });

  it('refuses a broken archive and a broken spec', async () => {
    const broken = await agent.internal('PUT', '/_thaw/bundle', 'this is no archive'.repeat(100));
    assert.equal(broken.status, 400);
    assert.match(await broken.text(), /cannot be unpacked/);
    for (const spec of [
      {},
      { runtime: 'perl' },
      { runtime: 'node' },
      { runtime: 'node', startTimeoutMs: 1, env: [] },
    ]) {
      const response = await agent.internal('POST', '/_thaw/runner', JSON.stringify(spec));
      assert.equal(response.status, 400, JSON.stringify(spec));
    }
  });

  it('ends its program when it ends itself', async () => {
    await put(agent, { 'index.js': 'export default () => new Response("x")' });
    assert.equal((await agent.startRunner({ runtime: 'node' })).outcome.type, 'ready');
    const pid = spawnSync('pgrep', ['-P', String(agent.pid), '-f', 'node-runner'])
      .stdout.toString()
      .trim();
    process.kill(agent.pid, 'SIGKILL');
    const end = performance.now() + 10_000;
    for (;;) {
      const status = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ' Z ');
      if (status.includes(' Z ')) break;
      assert.ok(performance.now() < end, 'the program outlived its agent');
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  });
});

const pythonFunction = `
import asyncio, random
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        return await send({"type": "websocket.send", "text": message["text"] + "!"})
    if scope["path"] == "/throw":
        raise RuntimeError("deliberate failure in python")
    if scope["path"] == "/echo":
        await send({"type": "http.response.start", "status": 201, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})
        return
    if scope["path"] == "/events":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for count in range(3):
            await send({"type": "http.response.body", "body": b"data: %d\\n\\n" % count, "more_body": True})
            await asyncio.sleep(0.1)
        return await send({"type": "http.response.body", "body": b""})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(random.random()).encode()})
`;
const wsgiFunction = `
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/throw":
        raise RuntimeError("deliberate failure in wsgi")
    start_response("202 Accepted", [("content-type", "text/plain")])
    return [environ["REQUEST_METHOD"].encode(), b" ", body]
`;

describe('a server of a sandbox', () => {
  let agent: AgentFixture;
  const servers = new Set<Server>();
  before(async () => {
    agent = await AgentFixture.start();
  });
  after(async () => {
    await agent?.[Symbol.asyncDispose]();
    for (const server of servers) server.close();
  });

  it('is found on its port, by the host too, after each restore', async () => {
    const server = createServer((request, response) => response.end(`asked ${request.url}`));
    servers.add(server.listen(0, '127.0.0.1'));
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const { outcome } = await agent.startRunner({ runtime: 'listening', port });
    assert.deepEqual([outcome.type, (outcome as { port?: number }).port], ['ready', port]);
    await agent.request({ op: 'hold', nonce: 'saved' });
    assert.equal((await agent.restore()).ok, true);
    assert.equal(agent.ports.runner, port);
    assert.equal(await (await call(agent, '/x')).text(), 'asked /x');
  });

  it('that does not listen is told with its port', async () => {
    const { outcome } = await agent.startRunner({ runtime: 'listening', port: 9, startTimeoutMs: 200 });
    assert.equal(outcome.type, 'failed');
    assert.match((outcome as { message: string }).message, /no answer on port 9 within 200 ms/);
    const none = await agent.startRunner({ runtime: 'listening' });
    assert.match((none.outcome as { message: string }).message, /needs a port/);
  });

  it('is started at home, with what the sandbox had in its environment', async () => {
    const program = `
      const about = JSON.stringify({ cwd: process.cwd(), home: process.env.HOME, env: process.env.FROM_INIT, own: process.env.OWN });
      require('node:http').createServer((_, response) => response.end(about)).listen(process.env.PORT, '127.0.0.1');`;
    const command = [process.execPath, '-e', program];
    const { outcome, output } = await agent.startRunner({
      ...{ runtime: 'command', command, place: 'home', env: { OWN: 'mine' } },
    });
    assert.equal(outcome.type, 'ready', output);
    const about = (await (await call(agent, '/')).json()) as Record<string, string>;
    assert.deepEqual([about.env, about.own, about.cwd], ['yes', 'mine', about.home]);
  });
});

const socketLibrary = spawnSync('sh', [
  '-c',
  'python3 -c "import websockets" || python3 -c "import wsproto"',
]);
const uvicorn = spawnSync('python3', ['-c', 'import uvicorn, asgiref']);
describe('a Python function', {
  skip: uvicorn.status === 0 ? false : 'python3 with uvicorn and asgiref is not installed',
}, () => {
  let agent: AgentFixture;
  before(async () => {
    agent = await AgentFixture.start('ready');
  });
  after(() => agent?.[Symbol.asyncDispose]());

  const throws = async (words: RegExp) => {
    const response = await call(agent, '/throw');
    assert.deepEqual([response.status, response.headers.get('x-thaw-error')], [500, 'handler-threw']);
    assert.doesNotMatch(await response.text(), /deliberate/);
    const isTrace = (event: unknown) => words.test((event as LogEvent).line ?? '');
    await agent.eventually('the traceback in the log', () => agent.events.some(isTrace));
  };

  it('serves ASGI with streams both ways and WebSocket', async (context) => {
    await put(agent, { 'main.py': pythonFunction });
    const { outcome, output } = await agent.startRunner({ runtime: 'python', startTimeoutMs: 60_000 });
    assert.equal(outcome.type, 'ready', output);
    const body = 'x'.repeat(3_000_000);
    const echo = await call(agent, '/echo', { method: 'POST', body });
    assert.deepEqual([echo.status, (await echo.text()).length], [201, body.length]);
    assert.equal(await (await call(agent, '/events')).text(), 'data: 0\n\ndata: 1\n\ndata: 2\n\n');
    await throws(/deliberate failure in python/);
    if (socketLibrary.status === 0) {
      const socket = new WebSocket(`ws://127.0.0.1:${agent.ports.runner}/ws`);
      socket.once('open', () => socket.send('over the wire'));
      const [heard] = (await once(socket, 'message')) as [Buffer];
      assert.equal(heard.toString(), 'over the wire!');
      socket.terminate();
    } else context.diagnostic('WebSocket not tried: neither python websockets nor wsproto is installed');
    await agent.request({ op: 'seal', nonce: 'py' });
    assert.equal((await agent.restore()).ok, true);
    assert.match(await (await call(agent, '/')).text(), /^0\./);
  });

  it('serves WSGI', async () => {
    await put(agent, { 'app.py': wsgiFunction });
    const { outcome, output } = await agent.startRunner({ runtime: 'python', startTimeoutMs: 60_000 });
    assert.equal(outcome.type, 'ready', output);
    const response = await call(agent, '/', { method: 'PUT', body: 'hello' });
    assert.deepEqual([response.status, await response.text()], [202, 'PUT hello']);
    await throws(/deliberate failure in wsgi/);
  });

  it('says what is wrong with the bundle', async () => {
    await put(agent, { 'main.py': 'x = 1' });
    const none = await agent.startRunner({ runtime: 'python', startTimeoutMs: 60_000 });
    assert.match(none.output, /main\.py has no `app`/);
    await put(agent, { 'readme.txt': '' });
    assert.match((await agent.startRunner({ runtime: 'python', startTimeoutMs: 60_000 })).output, /no entry/);
  });
});
