// Tests that an upload which fails is answered, however much of its body is still to come: bodies here are larger than
// what the sockets between client and agent hold.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readdir, symlink } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { AgentFixture } from './agent-fixture.ts';

const answerTimeoutMs = 20_000;
const bodyBytes = 24 * 1024 * 1024;

let agent: AgentFixture;
let home: string;
before(async () => {
  [agent, home] = await AgentFixture.startWithHome();
});
after(() => agent?.[Symbol.asyncDispose]());

/** Sends the files in one multipart body, and then asks something else of the same agent. */
async function upload(query: string, ...names: string[]): Promise<[status: number, code: unknown]> {
  const form = new FormData();
  for (const name of names) form.append('file', new Blob([Buffer.alloc(bodyBytes)]), name);
  const signal = AbortSignal.timeout(answerTimeoutMs);
  const response = await agent.fetch(`/files${query}`, { method: 'POST', body: form, signal });
  const { code } = (await response.json()) as { code?: number };
  assert.equal((await agent.fetch('/health', { signal })).status, 204);
  return [response.status, code];
}

describe('a multipart upload that fails', () => {
  it('is answered when its path cannot be written', async () => {
    await mkdir(join(home, 'directory'));
    assert.deepEqual(await upload('?path=directory', 'x'), [400, 400]);
    assert.deepEqual(await upload('', 'directory'), [400, 400]);
    assert.deepEqual(await upload('?path=/dev/null/x', 'x'), [400, 400]);
    await symlink('loop', join(home, 'loop'));
    assert.deepEqual(await upload('?path=loop/x', 'x'), [400, 400]);
    assert.deepEqual(await upload(`?path=${'n'.repeat(300)}`, 'x'), [400, 400]);
  });

  it('is answered when its user or its token is wrong', async () => {
    assert.deepEqual(await upload('?path=x&username=no%2Fsuch', 'x'), [401, 401]);
    const body = new FormData();
    body.append('file', new Blob([Buffer.alloc(bodyBytes)]), 'x');
    const signal = AbortSignal.timeout(answerTimeoutMs);
    const response = await fetch(`${agent.origin}/files?path=x`, { method: 'POST', body, signal });
    assert.equal(response.status, 401);
    assert.equal(existsSync(join(home, 'x')), false);
  });

  it('is answered when the disk is full, with what came before and after it', async (context) => {
    const full = await agent.tinyFileSystem();
    if (full === undefined) return context.skip('no permission to mount a tmpfs');
    try {
      assert.deepEqual(await upload(`?path=${full}/x`, 'x'), [507, 507]);
      assert.deepEqual(await upload('', 'one', `${full}/x`, 'other'), [507, 507]);
      assert.deepEqual(await upload('', `${full}/x`, `${full}/y`), [507, 507]);
      assert.deepEqual(await readdir(full), [], 'what could not be written whole is gone');
    } finally {
      spawnSync('umount', [full]);
    }
  });

  it('is answered before its body has ended', async () => {
    const part = '--b\r\ncontent-disposition: form-data; name="file"; filename="directory"\r\n\r\n';
    const head = `POST /files HTTP/1.1\r\nhost: x\r\nx-access-token: ${agent.accessToken}\r\n`;
    const socket = connect(agent.ports.agent, '127.0.0.1');
    let answer = '';
    socket.setEncoding('utf8').on('data', (text: string) => {
      answer += text;
    });
    socket.write(
      `${head}content-type: multipart/form-data; boundary=b\r\ncontent-length: 99999\r\n\r\n${part}some`,
    );
    await agent.eventually('an answer', () => answer.startsWith('HTTP/1.1 400'));
    socket.destroy();
  });
});
