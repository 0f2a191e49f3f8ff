// What `thaw deploy` asks for, by its words: the body of its request to a server that notes it, or a usage error.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Writable } from 'node:stream';
import { json } from 'node:stream/consumers';
import { after, before, describe, it } from 'node:test';
import { newApiKey } from '../../../shared/ids.ts';
import { runCli } from '../program.ts';

describe('thaw deploy', () => {
  let server: Server;
  const asked: { url: string | undefined; body: unknown }[] = [];
  before(async () => {
    server = createServer(async (request, response) => {
      asked.push({ url: request.url, body: await json(request) });
      response.writeHead(201, { 'content-type': 'application/json' });
      response.end(
        JSON.stringify({ name: 'site', version: 1, state: 'ready', snapshotId: null, error: null }),
      );
    }).listen(0, '127.0.0.1');
    await once(server, 'listening');
  });
  after(() => server.close());

  const deploy = async (...args: string[]) => {
    const sink = new Writable({ write: (_chunk, _encoding, done) => done() });
    const env = { THAW_PORT: String((server.address() as AddressInfo).port), THAW_API_KEY: newApiKey() };
    return runCli(['deploy', ...args], { env, stdout: sink, stderr: sink });
  };

  it('takes --port for the server in the snapshot, and still finds Thaw', async () => {
    const args = ['--from-snapshot', 'snap', '--name', 'site', '--port', '8000', '--command', 'serve it'];
    assert.equal(await deploy(...args), 0);
    const command = ['/bin/bash', '-c', 'serve it'];
    const body = { name: 'site', fromSnapshot: 'snap', port: 8000, command };
    assert.deepEqual(asked, [{ url: '/v1/functions', body }]);
  });

  it('refuses what cannot be meant, before it asks', async () => {
    for (const args of [
      [],
      ['dir', '--from-snapshot', 'snap', '--name', 'a', '--port', '1'],
      ['--from-snapshot', 'snap', '--name', 'a'],
      ['--from-snapshot', 'snap', '--port', '8000'],
      ['--from-snapshot', 'snap', '--name', 'a', '--port', '70000'],
      ['dir', '--command', 'x'],
    ])
      assert.equal(await deploy(...args), 2, args.join(' '));
  });
});
