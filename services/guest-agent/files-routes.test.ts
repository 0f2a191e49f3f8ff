// Tests file transfer on a real agent process: ranges, codings, signatures, refusals, memory.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, symlink, truncate, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { gzipSync } from 'node:zlib';
import { AgentFixture } from './agent-fixture.ts';
import { codingFor, parseRange } from './content-negotiation.ts';

let agent: AgentFixture;
let home: string;
before(async () => {
  [agent, home] = await AgentFixture.startWithHome();
});
after(() => agent?.[Symbol.asyncDispose]());

const codeOf = async (response: Response): Promise<[number, number]> => [
  response.status,
  ((await response.json()) as { code: number }).code,
];

describe('GET /files', () => {
  it('serves ranges as HTTP says', async () => {
    await writeFile(join(home, 'digits'), '0123456789');
    const get = async (range: string) => {
      const response = await agent.fetch('/files?path=digits', { headers: { range } });
      return [response.status, response.headers.get('content-range'), await response.text()];
    };
    assert.deepEqual(await get('bytes=2-4'), [206, 'bytes 2-4/10', '234']);
    assert.deepEqual(await get('bytes=7-'), [206, 'bytes 7-9/10', '789']);
    assert.deepEqual(await get('bytes=-2'), [206, 'bytes 8-9/10', '89']);
    assert.deepEqual(await get('bytes=4-99'), [206, 'bytes 4-9/10', '456789']);
    assert.deepEqual((await get('bytes=10-')).slice(0, 2), [416, 'bytes */10']);
    assert.deepEqual(await get('lines=1-2'), [200, null, '0123456789']);
    assert.equal(parseRange('bytes=5-2', 10), undefined);
    assert.equal(parseRange('bytes=-0', 10), 'unsatisfiable');
  });

  it('compresses only for a client that asks for nothing else', async () => {
    const { request } = await import('node:http');
    await writeFile(join(home, 'zeros'), Buffer.alloc(50_000));
    const encodingFor = (accept: string) =>
      new Promise((resolve, reject) => {
        const headers = { 'accept-encoding': accept, 'x-access-token': agent.accessToken };
        request(`${agent.origin}/files?path=zeros`, { headers }, (response) => {
          response.resume();
          resolve([response.headers['content-encoding'], response.headers['content-length']]);
        })
          .on('error', reject)
          .end();
      });
    assert.deepEqual(await encodingFor('gzip'), ['gzip', undefined]);
    assert.deepEqual(await encodingFor('gzip, deflate'), [undefined, '50000']);
  });

  it('finds the coding that the client means', () => {
    assert.equal(codingFor(undefined), 'identity');
    assert.equal(codingFor('gzip'), 'gzip');
    assert.equal(codingFor('gzip;q=0'), 'identity');
    assert.equal(codingFor('gzip, deflate, br'), 'identity');
    assert.equal(codingFor('gzip;q=1.0, identity;q=0.5'), 'gzip');
    assert.equal(codingFor('identity;q=0, gzip'), 'gzip');
    assert.equal(codingFor('br, *;q=0'), undefined);
    assert.equal(codingFor('identity;q=0'), undefined);
    assert.equal(codingFor('*'), 'identity');
    assert.equal(codingFor('nonsense;q=9'), 'identity');
  });

  it('answers 406 when it may send neither coding', async () => {
    const headers = { 'accept-encoding': 'br, identity;q=0' };
    await writeFile(join(home, 'coded'), 'x');
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=coded', { headers })), [406, 406]);
  });

  it('sends nothing of a file that is unchanged, and no range of one that is not', async () => {
    await writeFile(join(home, 'conditional'), '0123456789');
    const get = async (headers: Record<string, string>) => {
      const response = await agent.fetch('/files?path=conditional', { headers });
      return [response.status, response.status === 412 ? '' : await response.text()];
    };
    const { headers } = await agent.fetch('/files?path=conditional');
    const [tag, date] = [headers.get('etag')!, headers.get('last-modified')!];
    const before = new Date(Date.parse(date) - 1000).toUTCString();
    const range = 'bytes=1-2';
    assert.deepEqual(await get({ 'if-none-match': `"other", W/${tag}` }), [304, '']);
    assert.deepEqual(await get({ 'if-none-match': '"other"', 'if-modified-since': date }), [
      200,
      '0123456789',
    ]);
    assert.deepEqual(await get({ 'if-modified-since': date }), [304, '']);
    assert.deepEqual(await get({ 'if-modified-since': before }), [200, '0123456789']);
    assert.deepEqual(await get({ 'if-modified-since': 'never' }), [200, '0123456789']);
    assert.deepEqual(await get({ 'if-match': '*' }), [200, '0123456789']);
    assert.deepEqual(await get({ 'if-match': '"other"' }), [412, '']);
    assert.deepEqual(await get({ 'if-unmodified-since': before }), [412, '']);
    assert.deepEqual(await get({ range, 'if-range': tag }), [206, '12']);
    assert.deepEqual(await get({ range, 'if-range': date }), [206, '12']);
    assert.deepEqual(await get({ range, 'if-range': before }), [200, '0123456789']);
    await writeFile(join(home, 'conditional'), 'changed');
    assert.deepEqual(await get({ 'if-none-match': tag }), [200, 'changed']);
    assert.deepEqual(await get({ range, 'if-range': tag }), [200, 'changed']);
  });

  it('reads empty files as empty and files of /proc as what they hold', async () => {
    await writeFile(join(home, 'empty'), '');
    const empty = await agent.fetch('/files?path=empty');
    assert.deepEqual([empty.headers.get('content-length'), await empty.text()], ['0', '']);
    const proc = await agent.fetch('/files?path=/proc/self/status');
    assert.match(await proc.text(), /VmRSS/);
  });

  it('sends a file that is written anew all the time as it is at some moment, and keeps the connection', async () => {
    const path = join(home, 'counter');
    // Emptied first, written a moment later: what any shell does.
    const loop = 'while :; do echo 0123456789 > "$1"; done';
    const writer = spawn('sh', ['-c', loop, 'sh', path], { stdio: 'ignore' });
    try {
      await agent.eventually('the first write', () => existsSync(path));
      const seen = new Set<string>();
      const endMs = performance.now() + 30_000;
      // How often a reader meets the moment between the two is the host's affair.
      for (let count = 0; count < 1_000 || (seen.size < 2 && performance.now() < endMs); count++) {
        const headers = count % 2 === 0 ? {} : { range: 'bytes=0-99' };
        const response = await agent.fetch('/files?path=counter', { headers });
        const text = await response.text();
        assert.ok([200, 206].includes(response.status), `${response.status} ${text}`);
        seen.add(text);
      }
      assert.deepEqual([...seen].sort(), ['', '0123456789\n']);
    } finally {
      writer.kill('SIGKILL');
    }
  });

  it('breaks off a file that shrinks on its way, and goes on serving', async () => {
    const path = join(home, 'shrinking');
    // More than the sockets in between hold.
    await writeFile(path, Buffer.alloc(64 * 1024 * 1024));
    const response = await agent.fetch('/files?path=shrinking');
    assert.equal(response.headers.get('content-length'), String(64 * 1024 * 1024));
    await truncate(path, 1);
    await assert.rejects(response.arrayBuffer());
    assert.equal(await (await agent.fetch('/files?path=shrinking')).text(), '\0');
  });

  it('refuses what is no file', async () => {
    await symlink('/nowhere', join(home, 'dangling'));
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=absent')), [404, 404]);
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=dangling')), [404, 404]);
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=/')), [400, 400]);
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=/dev/zero')), [400, 400]);
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=digits/below')), [400, 400]);
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=x&username=no%2Fsuch')), [401, 401]);
    assert.deepEqual(await codeOf(await agent.fetch('/files?path=x', { method: 'DELETE' })), [405, 405]);
  });

  it('takes a signature in place of the token', async () => {
    await writeFile(join(home, 'signed'), 'secret words');
    const sign = (operation: string, expiry?: number) => {
      const parts = ['signed', operation, 'user', agent.accessToken, ...(expiry ? [expiry] : [])];
      const digest = createHash('sha256').update(parts.join(':')).digest('base64').replace(/=+$/, '');
      const query = new URLSearchParams({ path: 'signed', username: 'user', signature: `v1_${digest}` });
      if (expiry) query.set('signature_expiration', String(expiry));
      return fetch(`${agent.origin}/files?${query}`);
    };
    const soon = Math.floor(Date.now() / 1000) + 60;
    assert.equal(await (await sign('read')).text(), 'secret words');
    assert.equal((await sign('read', soon)).status, 200);
    assert.equal((await sign('write')).status, 401);
    const expired = await sign('read', soon - 120);
    assert.equal(expired.status, 401);
    assert.match(await expired.text(), /signature is already expired/);
    assert.equal((await fetch(`${agent.origin}/files?path=signed`)).status, 401);
  });
});

describe('POST /files', () => {
  const octets = { 'content-type': 'application/octet-stream' };

  it('streams a large body to disk without holding it', async () => {
    const sizeBytes = 100 * 1024 * 1024;
    const chunk = Buffer.alloc(1024 * 1024, 7);
    let sent = 0;
    const body = new ReadableStream({
      pull(controller) {
        if (sent >= sizeBytes) return controller.close();
        sent += chunk.length;
        controller.enqueue(chunk);
      },
    });
    const response = await agent.fetch('/files?path=large', {
      method: 'POST',
      headers: octets,
      body,
      duplex: 'half',
    } as RequestInit);
    assert.equal(response.status, 200, await response.clone().text());
    const status = await readFile(`/proc/${agent.pid}/status`, 'utf8');
    const peakMb = Number(/VmHWM:\s+(\d+)/.exec(status)![1]) / 1024;
    assert.ok(peakMb < 160, `the agent reached ${peakMb.toFixed(0)} MB`);
    const head = await agent.fetch('/files?path=large', { headers: { range: `bytes=${sizeBytes - 3}-` } });
    assert.deepEqual(Buffer.from(await head.arrayBuffer()), Buffer.from([7, 7, 7]));
  });

  it('takes gzip and several multipart files, and answers with their places', async () => {
    const zipped = await agent.fetch('/files?path=unzipped', {
      method: 'POST',
      headers: { ...octets, 'content-encoding': 'gzip' },
      body: gzipSync('was small'),
    });
    assert.deepEqual(await zipped.json(), [{ path: `${home}/unzipped`, name: 'unzipped', type: 'file' }]);
    assert.equal(await readFile(join(home, 'unzipped'), 'utf8'), 'was small');
    const form = new FormData();
    form.append('file', new Blob(['1']), `${home}/deep/er/one`);
    form.append('other', 'ignored');
    form.append('file', new Blob([]), 'two');
    const many = await agent.fetch('/files', { method: 'POST', body: form });
    const places = ((await many.json()) as { path: string }[]).map(({ path }) => path);
    assert.deepEqual(places, [`${home}/deep/er/one`, `${home}/two`]);
    assert.equal(await readFile(join(home, 'two'), 'utf8'), '');
  });

  it('refuses broken bodies', async () => {
    const post = async (
      path: string,
      headers: Record<string, string>,
      body: string | Uint8Array<ArrayBuffer>,
    ) => await codeOf(await agent.fetch(path, { method: 'POST', headers, body }));
    const multipart = { 'content-type': 'multipart/form-data; boundary=b' };
    assert.deepEqual(await post('/files', octets, 'x'), [400, 400]);
    assert.deepEqual(await post('/files?path=/', octets, 'x'), [400, 400]);
    assert.deepEqual(await post('/files?path=x', { 'content-type': 'text/plain' }, 'x'), [400, 400]);
    assert.deepEqual(await post('/files', multipart, 'not multipart'), [400, 400]);
    assert.deepEqual(await post('/files?path=x', { ...octets, 'content-encoding': 'br' }, 'x'), [400, 400]);
    const torn = gzipSync('x'.repeat(1000)).subarray(0, 20);
    assert.deepEqual(
      await post('/files?path=x', { ...octets, 'content-encoding': 'gzip' }, torn),
      [400, 400],
    );
    const form = new FormData();
    for (const name of ['a', 'b']) form.append('file', new Blob(['x']), name);
    assert.deepEqual(
      await codeOf(await agent.fetch('/files?path=one', { method: 'POST', body: form })),
      [400, 400],
    );
  });

  it('takes more files than may be open at once, and each path once', async () => {
    const form = new FormData();
    for (let count = 0; count < 700; count++) form.append('file', new Blob([`${count}`]), `lots/${count}`);
    const response = await agent.fetch('/files', { method: 'POST', body: form });
    assert.equal(((await response.json()) as object[]).length, 700);
    assert.equal(await readFile(join(home, 'lots/699'), 'utf8'), '699');
    const twice = new FormData();
    for (const name of ['same', '~/same']) twice.append('file', new Blob(['x']), name);
    assert.deepEqual(await codeOf(await agent.fetch('/files', { method: 'POST', body: twice })), [400, 400]);
  });

  it('leaves neither a file nor an open one when the client goes in the middle', async () => {
    const openFiles = async () => (await readdir(`/proc/${agent.pid}/fd`)).length;
    const before = await openFiles();
    for (const type of ['application/octet-stream', 'multipart/form-data; boundary=b']) {
      const part = '--b\r\ncontent-disposition: form-data; name="file"; filename="half"\r\n\r\n';
      const head = `POST /files?path=half HTTP/1.1\r\nhost: x\r\nx-access-token: ${agent.accessToken}\r\n`;
      const socket = connect(agent.ports.agent, '127.0.0.1');
      socket.write(`${head}content-type: ${type}\r\ncontent-length: 9999\r\n\r\n${part}some`);
      await agent.eventually('the file begun', () => existsSync(join(home, 'half')));
      socket.destroy();
      await agent.eventually('the file gone', () => !existsSync(join(home, 'half')));
    }
    let open = before + 1;
    await agent.eventually('all files closed', () => {
      void openFiles().then((count) => {
        open = count;
      });
      return open <= before;
    });
  });

  it('takes the rest of a refused body off the connection: the next request on it is answered at once', async () => {
    const { Agent, request } = await import('node:http');
    const connection = new Agent({ keepAlive: true, maxSockets: 1 });
    const ask = (method: string, path: string, body?: Buffer) =>
      new Promise<number>((resolve, reject) => {
        const headers = { ...octets, 'x-access-token': agent.accessToken };
        request(agent.origin + path, { method, headers, agent: connection }, (response) => {
          response.resume().once('end', () => resolve(response.statusCode!));
        })
          .once('error', reject)
          .end(body);
      });
    await writeFile(join(home, 'next'), 'x');
    const startMs = performance.now();
    assert.equal(await ask('POST', '/files?path=/', Buffer.alloc(16 * 1024 * 1024)), 400);
    assert.equal(await ask('GET', '/files?path=next'), 200);
    assert.ok(performance.now() - startMs < 3_000, 'before the connection is given up');
    connection.destroy();
  });

  it('says 507 when the disk is full, and leaves the connection usable for the answer', async (context) => {
    const full = await agent.tinyFileSystem();
    if (full === undefined) return context.skip('no permission to mount a tmpfs');
    try {
      const body = Buffer.alloc(4 * 1024 * 1024);
      const response = await agent.fetch(`/files?path=${full}/x`, { method: 'POST', headers: octets, body });
      assert.deepEqual(await codeOf(response), [507, 507]);
      assert.deepEqual(await readdir(full), [], 'what could not be written whole is gone');
      await agent.fetch('/files?path=source', { method: 'POST', headers: octets, body });
      const compose = JSON.stringify({ source_paths: ['source'], destination: `${full}/x` });
      const composed = await agent.fetch('/files/compose', { method: 'POST', body: compose });
      assert.deepEqual(await codeOf(composed), [507, 507]);
      assert.deepEqual(await readdir(full), []);
      assert.equal(
        (await agent.fetch('/files?path=source', { headers: { range: 'bytes=0-0' } })).status,
        206,
      );
      const make = async (name: number) =>
        (await agent.unary('filesystem.Filesystem/MakeDir', { path: `${full}/${name}` })).body.code;
      const codes = await Promise.all(Array.from({ length: 30 }, (_, name) => make(name)));
      assert.ok(codes.includes('resource_exhausted' as never), String(codes));
    } finally {
      spawnSync('umount', [full]);
    }
  });
});

describe('POST /files/compose', () => {
  const compose = async (message: object) => {
    const response = await agent.fetch('/files/compose', { method: 'POST', body: JSON.stringify(message) });
    return { status: response.status, body: (await response.json()) as Record<string, unknown> };
  };

  it('joins files in the order given and removes them', async () => {
    await mkdir(join(home, 'parts'));
    for (const name of ['1', '2', '3']) await writeFile(join(home, 'parts', name), name.repeat(300_000));
    const source_paths = ['parts/2', '~/parts/1', `${home}/parts/3`, 'parts/2'];
    const { status, body } = await compose({ source_paths, destination: 'whole/joined' });
    assert.deepEqual([status, body], [200, { path: `${home}/whole/joined`, name: 'joined', type: 'file' }]);
    const expected = ['2', '1', '3', '2'].map((name) => name.repeat(300_000)).join('');
    assert.ok((await readFile(join(home, 'whole/joined'), 'utf8')) === expected);
    assert.deepEqual(await readdir(join(home, 'parts')), []);
    assert.deepEqual(await readdir(join(home, 'whole')), ['joined']);
  });

  it('may append to its own destination', async () => {
    await writeFile(join(home, 'log'), 'a');
    await writeFile(join(home, 'more'), 'b');
    assert.equal((await compose({ source_paths: ['log', 'more'], destination: 'log' })).status, 200);
    assert.equal(await readFile(join(home, 'log'), 'utf8'), 'ab');
  });

  it('refuses what it cannot join and then removes nothing', async () => {
    await writeFile(join(home, 'there'), 'x');
    const codeFor = async (message: object) => (await compose(message)).body.code;
    assert.equal(await codeFor({ source_paths: ['there', 'absent'], destination: 'd' }), 404);
    assert.equal(await codeFor({ source_paths: ['there', '/etc'], destination: 'd' }), 400);
    assert.equal(await codeFor({ source_paths: [], destination: 'd' }), 400);
    assert.equal(await codeFor({ source_paths: ['there'] }), 400);
    assert.equal(await codeFor({ source_paths: 'there', destination: 'd' }), 400);
    assert.equal(await codeFor({ source_paths: ['there'], destination: '/etc' }), 400);
    assert.equal(await codeFor({ source_paths: ['there'], destination: 'd', username: 'no/such' }), 401);
    assert.equal(await readFile(join(home, 'there'), 'utf8'), 'x');
  });
});
