// Tests metadata of files: what is taken, kept, replaced, shown and refused, on a real agent process.
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { AgentFixture } from './agent-fixture.ts';
import { listAttributes, readAttribute, writeAttribute } from './extended-attributes.ts';

let agent: AgentFixture;
let home: string;
before(async () => {
  [agent, home] = await AgentFixture.startWithHome();
});
after(() => agent?.[Symbol.asyncDispose]());

const post = (path: string, headers: Record<string, string> | [string, string][]) =>
  agent.fetch(`/files?path=${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/octet-stream', ...Object.fromEntries(headers as never) },
    body: 'x',
  });
const upload = async (path: string, metadata: Record<string, string>) => {
  const entries = Object.entries(metadata).map(([key, value]) => [`X-Metadata-${key}`, value]);
  return await post(path, entries as [string, string][]);
};

describe('file metadata', () => {
  it('is kept under lower-case keys and shown by every call that shows an entry', async () => {
    const written = (await (await upload('kept', { Author: 'me', 'x.y': '' })).json()) as object[];
    const metadata = { author: 'me', 'x.y': '' };
    assert.deepEqual(written, [{ path: `${home}/kept`, name: 'kept', type: 'file', metadata }]);
    assert.equal(readAttribute(`${home}/kept`, 'user.e2b.author'), 'me');
    const { body } = await agent.unary('filesystem.Filesystem/Stat', { path: 'kept' });
    assert.deepEqual((body.entry as unknown as { metadata: object }).metadata, metadata);
  });

  it('is what the last upload said, and other attributes stay', async () => {
    await upload('replaced', { one: '1', two: '2' });
    writeAttribute(`${home}/replaced`, 'user.mine', 'kept');
    await upload('replaced', { two: 'b', three: 'c' });
    const names = () => listAttributes(`${home}/replaced`).sort();
    assert.deepEqual(names(), ['user.e2b.three', 'user.e2b.two', 'user.mine']);
    await upload('replaced', {});
    assert.deepEqual(names(), ['user.mine']);
  });

  it('has limits, and a refused upload leaves no file', async () => {
    const statusOf = async (metadata: Record<string, string>) => (await upload('limits', metadata)).status;
    assert.equal(await statusOf({ ['k'.repeat(246)]: 'v' }), 200);
    assert.equal(await statusOf({ ['k'.repeat(247)]: 'v' }), 400);
    // Key, value and the prefix of nine bytes.
    assert.equal(await statusOf({ k: 'v'.repeat(4097 - 10) }), 400);
    assert.equal((await upload('never', { k: 'caf\u00e9' })).status, 400);
    assert.equal((await upload('never', { '': 'v' })).status, 400);
    assert.equal((await agent.unary('filesystem.Filesystem/Stat', { path: 'never' })).status, 404);
  });

  it('counts the first of a header that is sent twice, and takes any key for a word', async () => {
    const { request } = await import('node:http');
    const headers = [
      'host',
      'x',
      'x-access-token',
      agent.accessToken,
      'content-type',
      'application/octet-stream',
    ];
    headers.push('content-length', '1', 'x-metadata-k', 'first', 'X-Metadata-K', 'second');
    headers.push('x-metadata-__proto__', 'word');
    const text = await new Promise<string>((resolve, reject) => {
      const call = request(`${agent.origin}/files?path=twice`, { method: 'POST', headers }, (response) => {
        response.setEncoding('utf8').on('data', resolve);
      });
      call.on('error', reject).end('x');
    });
    assert.match(text, /"metadata":\{"k":"first","__proto__":"word"\}/);
  });

  it('goes with the file through the real client, for each of several', async () => {
    const { files } = await agent.client();
    const metadata = { Origin: 'test', kind: 'a b' };
    const lower = { origin: 'test', kind: 'a b' };
    const many = await files.write(
      [
        { path: 'm/1', data: '1' },
        { path: 'm/2', data: '2' },
      ],
      { metadata },
    );
    assert.deepEqual(
      many.map((info) => info.metadata),
      [lower, lower],
    );
    assert.deepEqual((await files.write('m/3', 'x', { metadata, gzip: true })).metadata, lower);
    assert.deepEqual((await files.rename('m/3', 'm/4')).metadata, lower);
    await writeFile(join(home, 'm/5'), '');
    const listed = (await files.list('m')).map((info) => [info.name, info.metadata]);
    assert.deepEqual(listed, [
      ['1', lower],
      ['2', lower],
      ['4', lower],
      ['5', undefined],
    ]);
  });
});
