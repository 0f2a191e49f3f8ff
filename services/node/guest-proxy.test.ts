// Tests what a broken exchange is called: a port that is closed, a guest that hung up, a VM that ended.
import assert from 'node:assert/strict';
import { createServer, type RequestListener } from 'node:http';
import { type AddressInfo, createServer as createSocketServer, type Server } from 'node:net';
import { after, describe, it } from 'node:test';
import { Agent } from 'undici';
import type { Lease } from '../../pool/lease.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { ThawError } from '../../shared/errors.ts';
import { blamed, exchange } from './guest-proxy.ts';

const cleanup = new Cleanup();
/** One to each address, so that the next request goes where the last was answered. */
const connections = new Agent({ connections: 1 });
cleanup.defer('connections', () => connections.destroy());
after(() => cleanup.run());

async function originOf(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  cleanup.defer('server', () => new Promise((resolve) => server.close(resolve)));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const serve = (listener: RequestListener) => originOf(createServer(listener));

async function ask(origin: string, path = '/'): Promise<string> {
  const { signal } = new AbortController();
  const asked = { method: 'GET', path, headers: {}, body: null, signal, timeoutMs: 5_000 };
  const { body } = await exchange(connections, origin, asked, asked.timeoutMs);
  return (await body.toArray()).join('');
}

describe('an exchange that breaks', () => {
  it('is with a closed port when nothing was ever heard from there', async () => {
    const closed = createSocketServer();
    const refusing = await originOf(closed);
    await new Promise((resolve) => closed.close(resolve));
    await assert.rejects(ask(refusing), { code: 'guest-unreachable' });
    // What forwards to a guest's port cannot refuse: it has accepted before it knows.
    const hangsUp = await originOf(createSocketServer((socket) => socket.end()));
    await assert.rejects(ask(hangsUp), { code: 'guest-unreachable' });
  });

  it('was hung up by a guest that had answered on this connection before', async () => {
    const origin = await serve((request, response) => {
      if (request.url === '/') response.end('well');
      else response.destroy();
    });
    assert.equal(await ask(origin), 'well');
    await assert.rejects(ask(origin, '/broken'), { code: 'guest-hung-up' });
    assert.equal(await ask(origin), 'well', 'the port is open all the time');
  });

  it('is the fault of a VM that ends at the same time', async () => {
    const broken = new ThawError('guest-hung-up', 'x');
    const leaseOf = (ended: Promise<string>) => ({ vm: { ended } }) as unknown as Lease;
    const lost = await blamed(broken, leaseOf(Promise.resolve('a signal')));
    assert.equal((lost as ThawError).code, 'vm-died');
    assert.equal(await blamed(broken, leaseOf(new Promise(() => {}))), broken);
  });
});
