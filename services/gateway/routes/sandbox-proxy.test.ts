import assert from 'node:assert/strict';
import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { newSandboxId } from '../../../shared/ids.ts';
import { eventually } from '../eventually.ts';
import { type GatewayForTests, startGateway } from '../gateway-for-tests.ts';
import type { Echo } from '../simulated-node-client.ts';
import { isInternalPath } from './sandbox-proxy.ts';

let gateway: GatewayForTests;
let sandboxId: string;
before(async () => {
  gateway = await startGateway();
  const response = await gateway.call('/v2/sandboxes', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ templateID: 'base' }),
  });
  sandboxId = ((await response.json()) as { sandboxID: string }).sandboxID;
});
after(() => gateway.close());

interface Answer {
  status: number;
  text: string;
  json: Record<string, unknown>;
}

/** With node:http, which lets a test choose the Host and send any path as it is. */
function ask(path: string, headers: Record<string, string>, method = 'GET', body = ''): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(
      { host: '127.0.0.1', port: gateway.port, path, method, headers, agent: false },
      (answer) => {
        let text = '';
        answer.on('data', (chunk) => {
          text += chunk;
        });
        answer.on('end', () => {
          const isJson = String(answer.headers['content-type']).includes('json');
          resolve({ status: answer.statusCode!, text, json: isJson ? JSON.parse(text) : {} });
        });
        answer.on('error', reject);
      },
    );
    request.on('error', reject);
    request.end(body);
  });
}

const byHeader = (id = sandboxId, port = '49983') => ({ 'e2b-sandbox-id': id, 'e2b-sandbox-port': port });

describe('the data plane', () => {
  it('routes by header, with the agent as the default port, and by host name', async () => {
    const first = (
      await ask('/x?y=z', { ...byHeader(), 'x-access-token': 't', authorization: 'Basic eA==' }, 'POST', 'hi')
    ).json as unknown as Echo;
    assert.equal(first.url, '/x?y=z');
    assert.equal(first.method, 'POST');
    assert.equal(first.bodyBytes, 2);
    assert.equal(first.headers['x-access-token'], 't');
    assert.equal(first.headers.authorization, 'Basic eA==');
    assert.equal(first.headers['e2b-sandbox-id'], undefined);
    assert.equal((await ask('/health', { 'e2b-sandbox-id': sandboxId })).status, 200);
    const host = `8000-${sandboxId}.thaw.test:8080`;
    const byHost = (await ask('/fn/echo/', { host })).json as unknown as Echo;
    assert.equal(byHost.url, '/fn/echo/', 'a sandbox may have any path of its own');
    assert.equal(byHost.headers.host, host);
    assert.equal(byHost.headers['x-forwarded-host'], host);
    const other = byHeader(newSandboxId());
    const named = (await ask('/', { ...other, host: host.toUpperCase() })).json as unknown as Echo;
    assert.equal(
      named.headers['e2b-sandbox-id'],
      undefined,
      'the name decides, headers do not, nor does case',
    );
  });

  it('answers 502 in the words that clients look for', async () => {
    const unknown = newSandboxId();
    const gone = await ask('/health', byHeader(unknown));
    assert.equal(gone.status, 502);
    assert.deepEqual(gone.json, { sandboxId: unknown, message: 'The sandbox was not found', code: 502 });
    const closed = await ask('/', byHeader(sandboxId, '9999'));
    assert.equal(closed.status, 502);
    assert.equal(closed.json.port, 9999);
    assert.match(String(closed.json.message), /running but port is not open/);
    assert.equal((await ask('/', byHeader('../../etc'))).json.message, 'The sandbox was not found');
    assert.equal((await ask('/', byHeader(sandboxId, '0'))).status, 400);
    assert.equal((await ask('/', byHeader(sandboxId, '49983x'))).status, 400);
    const dead = await ask('/', { host: `80-${unknown}.thaw.test` });
    assert.equal(dead.json.message, 'The sandbox was not found');
  });

  it("never reaches the agent's internal routes, however they are spelled", async () => {
    const spellings = [
      '/init',
      '/init?x',
      '/init/',
      '//init',
      '/./init',
      '/a/../init',
      '/%69nit',
      '/%2e/init',
      '/a/%2e%2e/init',
      '/%2569nit',
      '/INIT',
      '/\\init',
      '/init;x=1',
      '/init%3fx',
      '/freeze',
      '/unfreeze',
      '/collapse',
      '/fsfreeze',
      '/fsthaw',
      '/upgrade',
      '/_thaw/bundle',
      '/_thaw',
      '/x/../_thaw/runner',
      '/%5fthaw/init',
      'http://h/init',
      'http://h//_thaw/init',
    ];
    for (const path of spellings) {
      const answer = await ask(path, { ...byHeader(), 'x-thaw-secret': 's' });
      assert.equal(answer.status, 404, path);
      assert.equal(answer.json.code, 404);
    }
    for (const path of ['/initial', '/files?path=/init', '/', '/process.Process/Start'])
      assert.equal(isInternalPath(path), false, path);
    assert.equal(
      (await ask('/init', byHeader(sandboxId, '8000'))).status,
      200,
      "a user's own server may have one",
    );
    const seen = (await ask('/', { ...byHeader(), 'x-thaw-secret': 's' })).json as unknown as Echo;
    assert.equal(seen.headers['x-thaw-secret'], undefined);
  });

  it('streams down as it comes and tells the guest of a lost client', async () => {
    assert.equal((await ask('/events', byHeader())).text, 'data: 0\n\ndata: 1\n\ndata: 2\n\n');
    const request = httpRequest({
      host: '127.0.0.1',
      port: gateway.port,
      path: '/never?sbx',
      headers: byHeader(),
    });
    request.on('error', () => {});
    request.end();
    await new Promise((resolve) => setTimeout(resolve, 50));
    request.destroy();
    await eventually('the guest hears of it', () => gateway.node.aborted.includes('/never?sbx'));
  });

  it('passes upgrades to a port, and refuses the others in its own words', async () => {
    const upgradeTo = async (path: string, host: string, done: (text: string) => boolean) => {
      const socket = connect(gateway.port, '127.0.0.1');
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk;
      });
      socket.on('error', () => {});
      socket.write(
        `GET ${path} HTTP/1.1\r\nHost: ${host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello`,
      );
      await eventually(`an answer for ${path}`, () => done(text));
      socket.destroy();
      return text;
    };
    const passed = await upgradeTo('/ws', `8000-${sandboxId}.t.test`, (text) => text.endsWith('hello'));
    assert.match(passed, /^HTTP\/1\.1 101/);
    const refused = (text: string) => text.endsWith('}');
    assert.match(
      await upgradeTo('/ws', `8000-${newSandboxId()}.t.test`, refused),
      /^HTTP\/1\.1 502 [\s\S]*was not found/,
    );
    assert.match(
      await upgradeTo('/ws', `9999-${sandboxId}.t.test`, refused),
      /^HTTP\/1\.1 502 [\s\S]*port is not open/,
    );
    assert.match(await upgradeTo('/init', `49983-${sandboxId}.t.test`, refused), /^HTTP\/1\.1 404/);
  });
});
