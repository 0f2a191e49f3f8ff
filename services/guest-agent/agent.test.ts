// Tests the agent's life with a real process: what it refuses before, between and after handshakes.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { describe, it } from 'node:test';
import { AgentFixture } from './agent-fixture.ts';

/** A Connect message of a stream: flags, length, JSON. */
function envelope(message: object): Uint8Array<ArrayBuffer> {
  const json = Buffer.from(JSON.stringify(message));
  const framed = new Uint8Array(5 + json.length);
  new DataView(framed.buffer).setUint32(1, json.length);
  framed.set(json, 5);
  return framed;
}

const proceed = { op: 'proceed', nonce: 'n1', wallClockMs: 1 };

describe('agent', () => {
  it('serves nothing but health until restored, and nothing again once sealed', async () => {
    await using agent = await AgentFixture.start('ready');
    const { origin } = agent;
    await agent.init();
    assert.equal((await agent.unary('process.Process/List', {})).status, 200);
    assert.equal((await agent.restore()).ok, false, 'a second restore without a seal');

    // One connection that has served and one that never sent anything: a capture must hold neither.
    const silent = connect(agent.ports.agent, '127.0.0.1');
    const used = connect(agent.ports.agent, '127.0.0.1');
    const closed = Promise.all(
      [silent, used].map((socket) => new Promise((done) => socket.once('close', done))),
    );
    used.write('GET /health HTTP/1.1\r\nhost: x\r\n\r\n');
    await new Promise((resolve) => used.once('data', resolve));
    silent.resume();
    assert.deepEqual(await agent.request({ op: 'seal', nonce: 'n1' }), { id: 3, ok: true });
    await closed;

    for (const path of ['/_thaw/init', '/files?path=/etc/hostname', '/process.Process/List', '/nowhere']) {
      const response = await fetch(origin + path, { method: 'POST', headers: { 'x-access-token': 'x' } });
      assert.equal(response.status, 503, path);
    }
    assert.equal((await fetch(`${origin}/health`)).status, 204);
    const { state, generation } = await agent.request({ op: 'health' });
    assert.deepEqual([state, generation], ['sealed', '']);

    const reply = await agent.restore({ generation: 'second', secret: 'another secret than before' });
    assert.deepEqual([reply.ok, reply.nonce, reply.generation], [true, 'n1', 'second']);
    assert.equal((await agent.internal('POST', '/_thaw/init', '{}')).status, 401, 'the old secret');
    assert.equal((await agent.unary('process.Process/List', {})).status, 401, 'the old token');
  });

  it('lets new requests wait while it is held, and goes on with what it had', async () => {
    await using agent = await AgentFixture.start();
    const { origin } = agent;
    const stream = await agent.fetch('/process.Process/Start', {
      method: 'POST',
      headers: { 'content-type': 'application/connect+json' },
      body: envelope({ process: { cmd: '/bin/sh', args: ['-c', 'read line; echo "$line"'] }, tag: 'held' }),
    });
    assert.equal(stream.status, 200);
    const { generation } = await agent.request({ op: 'health' });
    assert.equal((await agent.request({ op: 'hold', nonce: 'n1' })).ok, true);
    assert.equal((await agent.request({ op: 'hold', nonce: 'n2' })).ok, false, 'a second hold');
    assert.deepEqual((await agent.request({ op: 'health' })).state, 'held');
    let answered = false;
    const input = { process: { tag: 'held' }, input: { stdin: Buffer.from('through\n').toString('base64') } };
    const waiting = agent.unary('process.Process/SendInput', input).then((response) => {
      answered = true;
      return response;
    });
    // Longer than any answer takes: /health, asked later, is answered by the same server.
    for (let count = 0; count < 20; count++) assert.equal((await fetch(`${origin}/health`)).status, 204);
    assert.equal(answered, false);
    assert.equal((await agent.request({ ...proceed, nonce: 'n2' })).ok, false, 'another capture');
    assert.equal((await agent.request(proceed)).ok, true);
    assert.equal((await waiting).status, 200);
    assert.match(await stream.text(), new RegExp(Buffer.from('through\n').toString('base64')));
    assert.equal((await agent.request({ op: 'health' })).generation, generation);
  });

  it('serves nobody of before when a held copy of it is restored', async () => {
    await using agent = await AgentFixture.start();
    await agent.request({ op: 'hold', nonce: 'n1' });
    const waiting = agent.unary('process.Process/List', {});
    const refused = assert.rejects(waiting);
    for (let count = 0; count < 20; count++) await fetch(`${agent.origin}/health`);
    const reply = await agent.restore({ secret: 'another secret than before' });
    assert.deepEqual([reply.ok, reply.nonce], [true, 'n1']);
    await refused;
    assert.equal((await agent.unary('process.Process/List', {})).status, 401, 'the old token');
    assert.equal((await agent.internal('POST', '/_thaw/init', '{}')).status, 401, 'the old secret');
    assert.equal((await agent.request(proceed)).ok, false);
  });

  it('is booted at first and then refuses a seal', async () => {
    await using agent = await AgentFixture.start('booted');
    const { ok, state, uptimeMs } = await agent.request({ op: 'health' });
    assert.deepEqual([ok, state], [true, 'booted']);
    assert.ok((uptimeMs as number) > 0);
    assert.equal((await agent.request({ op: 'seal', nonce: 'n' })).ok, false);
  });

  it('needs the secret, the token, and known routes', async () => {
    await using agent = await AgentFixture.start();
    const call = async (path: string, headers: Record<string, string>) =>
      (await fetch(agent.origin + path, { method: 'POST', headers })).status;
    assert.equal(await call('/_thaw/init', { 'x-thaw-secret': 'wrong' }), 401);
    assert.equal(await call('/_thaw/nothing', { 'x-thaw-secret': agent.secret }), 404);
    assert.equal(await call('/process.Process/List', {}), 401);
    assert.equal(await call('/process.Process/List', { 'x-access-token': 'wrong' }), 401);
    assert.equal(await call('/process.Process/toString', { 'x-access-token': agent.accessToken }), 404);
  });

  it('keeps its memory small', async () => {
    await using agent = await AgentFixture.start();
    for (let count = 0; count < 20; count++) await agent.unary('process.Process/List', {});
    const status = await readFile(`/proc/${agent.pid}/status`, 'utf8');
    const rssMb = Number(/VmRSS:\s+(\d+)/.exec(status)![1]) / 1024;
    // From source the process also holds the TypeScript stripper, which the bundle in a guest does not.
    assert.ok(rssMb < 130, `the agent holds ${rssMb.toFixed(1)} MB`);
  });
});
