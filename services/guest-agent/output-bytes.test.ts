// Tests that output is bytes: what is no UTF-8 arrives unchanged, on every channel, and clients live with it.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { AgentFixture } from './agent-fixture.ts';

let agent: AgentFixture;
before(async () => {
  agent = await AgentFixture.start();
});
after(() => agent?.[Symbol.asyncDispose]());

/** Every byte, sequences that break off, surrogates, overlong forms: 64 KiB of it. */
const awkward = Buffer.concat(
  Array.from({ length: 64 }, () =>
    Buffer.concat([
      Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)),
      Buffer.from('c328a0a1e228a1f0288cbceda080c080f8a1a1a1a1', 'hex'),
      Buffer.alloc(747, 0xff),
    ]),
  ),
);
const digest = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

async function outputOf(script: string, channel: 'stdout' | 'stderr' | 'pty', over = {}): Promise<Buffer> {
  const process = { cmd: '/bin/sh', args: ['-c', script] };
  const { messages, end } = await agent.stream('process.Process/Start', { process, ...over });
  assert.deepEqual(end, {});
  const pieces = messages.map((message) => message.event?.data?.[channel]).filter(Boolean);
  return Buffer.concat(pieces.map((text: string) => Buffer.from(text, 'base64')));
}

describe('output that is no UTF-8', () => {
  it('arrives as it was written, on stdout, stderr and a terminal', async () => {
    const path = `${agent.rootDir}/home/awkward`;
    const headers = { 'content-type': 'application/octet-stream' };
    const body = new Uint8Array(awkward);
    assert.equal((await agent.fetch(`/files?path=${path}`, { method: 'POST', headers, body })).status, 200);
    assert.equal(digest(await outputOf(`cat ${path}`, 'stdout')), digest(awkward));
    assert.equal(digest(await outputOf(`cat ${path} >&2`, 'stderr')), digest(awkward));
    const pty = { size: { cols: 80, rows: 24 } };
    assert.equal(digest(await outputOf(`stty raw; cat ${path}`, 'pty', { pty })), digest(awkward));
  });

  it('leaves a client alive, and the valid part of it whole', async () => {
    const client = await agent.client();
    const { stdout, exitCode } = await client.commands.run(`cat ~/awkward; printf 'whole ü'`);
    assert.equal(exitCode, 0);
    assert.ok(stdout.endsWith('whole ü'));
  });

  it('keeps a character together that two writes broke apart', async () => {
    const client = await agent.client();
    const { stdout } = await client.commands.run(`printf '\\303'; sleep 0.2; printf '\\274'`);
    assert.equal(stdout, 'ü');
  });
});
