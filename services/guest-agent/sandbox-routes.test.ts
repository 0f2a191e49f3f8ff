// Tests what every route of a sandbox refuses, and its plain routes, on a real agent process.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { AgentFixture } from './agent-fixture.ts';
import { memoryOf, shareBetween, timesOf } from './guest-metrics.ts';
import { tokenRoutes } from './sandbox-routes.ts';

let agent: AgentFixture;
let home: string;
before(async () => {
  [agent, home] = await AgentFixture.startWithHome();
  await writeFile(join(home, 'secret'), 'secret words');
});
after(() => agent?.[Symbol.asyncDispose]());

const routes = [...tokenRoutes, 'GET /files?path=secret', 'POST /files?path=planted'];
const typeOf = (path: string) =>
  /Start|Connect|StreamInput|WatchDir/.test(path) ? 'application/connect+json' : 'application/json';

async function call(route: string, headers: Record<string, string>, query = '') {
  const [method, path] = route.split(' ') as [string, string];
  const init = {
    method,
    headers: { 'content-type': typeOf(path), ...headers },
    ...(method === 'GET' ? {} : { body: '{}' }),
  };
  const response = await fetch(agent.origin + path + query, init);
  return { status: response.status, text: await response.text() };
}

describe('every route', () => {
  it('is one the contract names', () => {
    assert.equal(tokenRoutes.length, 3 + 8 + 9);
  });

  for (const route of routes)
    it(`needs the token: ${route}`, async () => {
      const token = agent.accessToken;
      const wrong = ['', 'wrong', `${token}x`, token.slice(1), ` ${token.toUpperCase()}`, agent.secret];
      const credentials: Record<string, string>[] = wrong.map((value) => ({ 'x-access-token': value }));
      credentials.push({}, { authorization: `Basic ${btoa(`${token}:`)}` });
      credentials.push({ authorization: `Bearer ${token}` }, { 'x-thaw-secret': agent.secret });
      for (const headers of credentials) {
        const { status, text } = await call(route, headers);
        assert.equal(status, 401, `${JSON.stringify(headers)}: ${text}`);
        assert.doesNotMatch(text, /secret words|FROM_INIT/);
      }
    });

  it('takes no signature but for files, and there only its own', async () => {
    const sign = (path: string, operation: string, user: string, expiry: number | string, token: string) => {
      const signed = [path, operation, user, token, ...(expiry === '' ? [] : [expiry])].join(':');
      const digest = createHash('sha256').update(signed).digest('base64').replace(/=+$/, '');
      return `v1_${digest}`;
    };
    const soon = Math.floor(Date.now() / 1000) + 60;
    const url = (signature: string, expiry: number | string, user = '') =>
      `${agent.origin}/files?${new URLSearchParams({ path: 'secret', username: user, signature, signature_expiration: String(expiry) })}`;
    const statusOf = async (signature: string, expiry: number | string, user = '') =>
      (await fetch(url(signature, expiry, user))).status;
    const { accessToken } = agent;
    assert.equal(await statusOf(sign('secret', 'read', '', soon, accessToken), soon), 200);
    assert.equal(await statusOf(sign('secret', 'read', '', '', accessToken), ''), 200);
    const forged: [string, number | string, string?][] = [
      [sign('secret', 'read', '', soon - 100, accessToken), soon - 100],
      [sign('secret', 'read', '', soon - 100, accessToken), soon],
      [sign('secret', 'read', '', soon, accessToken), ''],
      [sign('secret', 'read', '', 'soon', accessToken), 'soon'],
      [sign('secret', 'write', '', soon, accessToken), soon],
      [sign('other', 'read', '', soon, accessToken), soon],
      [sign('secret', 'read', 'root', soon, accessToken), soon],
      [sign('secret', 'read', '', soon, accessToken), soon, 'root'],
      [sign('secret', 'read', '', soon, 'another token'), soon],
      [sign('secret', 'read', '', soon, ''), soon],
      ['v1_', soon],
      ['', soon],
    ];
    for (const [signature, expiry, user] of forged)
      assert.equal(await statusOf(signature, expiry, user), 401, `${signature} ${expiry} ${user}`);
    const query = `?path=secret&signature=${encodeURIComponent(sign('secret', 'read', '', '', accessToken))}`;
    for (const route of tokenRoutes) assert.equal((await call(route, {}, query)).status, 401, route);
  });

  it('is not one of those that only a host may call', async () => {
    const headers = { 'x-access-token': agent.accessToken };
    for (const path of ['init', 'freeze', 'unfreeze', 'collapse', 'fsfreeze', 'fsthaw', 'upgrade'])
      assert.equal((await call(`POST /${path}`, headers)).status, 404, path);
    assert.equal((await call('POST /_thaw/init', headers)).status, 401);
  });
});

describe('names and paths that no one means', () => {
  const hostile = ['\0', 'a\0b', 'x'.repeat(10_000), `${'y'.repeat(255)}z/`.repeat(2), '~root/x', '~\0'];

  it('are refused before anything is touched', async () => {
    const before = await readdir(home);
    for (const path of hostile) {
      const label = JSON.stringify(path.slice(0, 20));
      for (const method of ['GET', 'POST']) {
        const { status } = await agent.fetch(`/files?path=${encodeURIComponent(path)}`, {
          method,
          headers: { 'content-type': 'application/octet-stream' },
        });
        assert.equal(status, 400, `${method} ${label}`);
      }
      for (const method of ['Stat', 'MakeDir', 'ListDir', 'Remove', 'CreateWatcher']) {
        const { body } = await agent.unary(`filesystem.Filesystem/${method}`, { path });
        assert.equal(body.code, 'invalid_argument', `${method} ${label}`);
      }
      for (const fields of [
        { source: path, destination: 'moved' },
        { source: 'secret', destination: path },
      ])
        assert.equal((await agent.unary('filesystem.Filesystem/Move', fields)).body.code, 'invalid_argument');
      const body = JSON.stringify({ source_paths: ['secret'], destination: path });
      assert.equal((await agent.fetch('/files/compose', { method: 'POST', body })).status, 400, label);
    }
    for (const [method, fields] of [
      ['Remove', {}],
      ['Move', { source: 'secret' }],
      ['Move', { destination: 'x' }],
    ] as const)
      assert.equal(
        (await agent.unary(`filesystem.Filesystem/${method}`, fields)).body.code,
        'invalid_argument',
      );
    assert.deepEqual(await readdir(home), before);
  });

  it('are looked for as they are when they are only unusual', async () => {
    for (const path of [
      '../../../../etc/passwd-not-there',
      '%2e%2e%2fx',
      'ü\u202e\u0007',
      '-rf',
      '*',
      'a\'b"c\\',
    ]) {
      const { status } = await agent.fetch(`/files?path=${encodeURIComponent(path)}`);
      assert.equal(status, 404, path);
    }
    assert.equal((await agent.fetch('/files?path=%ff%fe')).status, 404);
  });

  it('are no users, processes and watchers', async () => {
    for (const user of ['../root', 'a b', 'root\n', `${'u'.repeat(40)}`, '-', '%00', 'ü']) {
      const path = `/files?path=secret&username=${encodeURIComponent(user)}`;
      assert.equal((await agent.fetch(path)).status, 401, user);
      const authorization = `Basic ${Buffer.from(`${user}:`).toString('base64')}`;
      const { body } = await agent.unary('filesystem.Filesystem/Stat', { path: 'secret' }, { authorization });
      assert.equal(body.code, 'unauthenticated', user);
    }
    for (const selector of [{ pid: 'x' }, { pid: 1.5 }, { pid: {} }, { tag: 5 }, { tag: 'a\0' }, 'self', []])
      assert.equal(
        (await agent.unary('process.Process/CloseStdin', { process: selector })).body.code,
        'invalid_argument',
        JSON.stringify(selector),
      );
    for (const process of [{ pid: -1 }, { pid: 0 }, { pid: 1 }, { pid: 2 ** 40 }, {}, { tag: '../x' }])
      assert.equal((await agent.unary('process.Process/CloseStdin', { process })).body.code, 'not_found');
    for (const watcherId of ['', '../w1', 'w'.repeat(10_000), '__proto__'])
      assert.equal(
        (await agent.unary('filesystem.Filesystem/RemoveWatcher', { watcherId })).body.code,
        'not_found',
      );
  });

  it('are no request targets', async () => {
    const statusOf = (target: string) =>
      new Promise<string>((resolve, reject) => {
        const socket = connect(agent.ports.agent, '127.0.0.1');
        socket.setEncoding('utf8').once('data', (text) => {
          resolve(String(text).split(' ')[1]!);
          socket.destroy();
        });
        socket.once('error', reject);
        socket.write(`GET ${target} HTTP/1.1\r\nhost: x\r\nx-access-token: ${agent.accessToken}\r\n\r\n`);
      });
    assert.equal(await statusOf('http://['), '400');
    assert.equal(await statusOf('//'), '400');
    assert.equal(await statusOf('/files/../../etc/passwd'), '404');
    assert.equal(await statusOf('/%66iles?path=secret'), '404');
    assert.equal(await statusOf('/__proto__'), '404');
    assert.equal(await statusOf(`/${'x'.repeat(10_000)}`), '404');
  });
});

describe('a directory of ten thousand', () => {
  it('is listed whole and removed', async () => {
    const path = join(home, 'crowd');
    await mkdir(path);
    const names = Array.from({ length: 10_000 }, (_, index) => `entry-${index}`);
    for (let at = 0; at < names.length; at += 500)
      await Promise.all(names.slice(at, at + 500).map((name) => writeFile(join(path, name), '')));
    const { files } = await agent.client();
    const listed = await files.list('crowd');
    assert.deepEqual(listed.map(({ name }) => name).sort(), names.sort());
    await files.remove('crowd');
    assert.equal(await files.exists('crowd'), false);
  });
});

describe('GET /envs and GET /metrics', () => {
  it('tell the environment and what the guest uses', async () => {
    assert.deepEqual(await (await agent.fetch('/envs')).json(), { FROM_INIT: 'yes' });
    const metrics = (await (await agent.fetch('/metrics')).json()) as Record<string, number>;
    assert.ok(Math.abs(metrics.ts! * 1000 - Date.now()) < 5000);
    for (const name of ['cpu_count', 'mem_total', 'mem_used', 'disk_total', 'disk_used', 'mem_cache'])
      assert.ok(metrics[name]! > 0, `${name} is ${metrics[name]}`);
    assert.ok(metrics.cpu_used_pct! >= 0 && metrics.cpu_used_pct! <= 100);
    assert.ok(metrics.mem_used! < metrics.mem_total! && metrics.disk_used! < metrics.disk_total!);
    assert.equal(metrics.mem_total_mib, Math.floor(metrics.mem_total! / 2 ** 20));
  });

  it("read the kernel's words", () => {
    const now = timesOf('cpu  10 20 30 100 40 5 6 7 99 99\ncpu0 1 2\n');
    assert.deepEqual(now, { total: 218, busy: 78 });
    assert.equal(shareBetween({ total: 118, busy: 53 }, now), 25);
    assert.equal(shareBetween(now, now), 0);
    const memory = memoryOf('MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   60 kB\nCached:  30 kB\n');
    assert.deepEqual(memory, { totalBytes: 102_400, usedBytes: 40_960, cacheBytes: 30_720 });
  });
});
