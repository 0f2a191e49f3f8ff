// Tests file transfer on a real agent process: ranges, codings, signatures, refusals, memory.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { gzipSync } from 'node:zlib';
import { AgentFixture } from './agent-fixture.ts';
import { parseRange } from './content-negotiation.ts';

let agent: AgentFixture;
let home: string;
before(async () => {
  agent = await AgentFixture.start();
  home = join(agent.rootDir, 'home');
  await mkdir(home, { recursive: true });
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

  it('reads empty files as empty and files of /proc as what they hold', async () => {
    await writeFile(join(home, 'empty'), '');
    const empty = await agent.fetch('/files?path=empty');
    assert.deepEqual([empty.headers.get('content-length'), await empty.text()], ['0', '']);
    const proc = await agent.fetch('/files?path=/proc/self/status');
    assert.match(await proc.text(), /VmRSS/);
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

  it('says 507 when the disk is full, and leaves the connection usable for the answer', async (context) => {
    const full = await tinyFileSystem();
    if (full === undefined) return context.skip('no permission to mount a tmpfs');
    try {
      const body = Buffer.alloc(4 * 1024 * 1024);
      const response = await agent.fetch(`/files?path=${full}/x`, { method: 'POST', headers: octets, body });
      assert.deepEqual(await codeOf(response), [507, 507]);
    } finally {
      spawnSync('umount', [full]);
    }
  });
});

/** A mounted file system of 64 KiB, or undefined where this user may not mount. */
async function tinyFileSystem(): Promise<string | undefined> {
  const path = join(agent.rootDir, 'full');
  await mkdir(path);
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', path]);
  return mounted.status === 0 ? path : undefined;
}
