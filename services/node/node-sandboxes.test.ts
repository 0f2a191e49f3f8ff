// Ports of a sandbox that speak TLS, as `httpsPorts` names them: real sockets, a certificate that nobody signed.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer as createPlain } from 'node:http';
import { createServer as createSecure } from 'node:https';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { Lease } from '../../pool/lease.ts';
import type { Pool } from '../../pool/pool.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { type EgressRules, openEgress } from '../../shared/egress.ts';
import { silentLog } from '../../shared/log.ts';
import { makeAuthority, noOpenssl } from '../gateway/certificate-for-tests.ts';
import { eventually } from '../gateway/eventually.ts';
import { NodeSandboxes } from './node-sandboxes.ts';

const cleanup = new Cleanup();
const applied: EgressRules[] = [];
let sandboxes: NodeSandboxes;
let agentPort: number;
let securePort: number;
const request = {
  sandboxId: 'i00000000000000000000',
  snapshotId: `snap-${'0'.repeat(24)}`,
  accessToken: 't',
  envVars: {},
  endAtMs: Date.now() + 60_000,
};

async function listen(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  cleanup.defer('server', () => new Promise((resolve) => server.close(resolve)));
  return (server.address() as AddressInfo).port;
}

/** What a sandbox needs of its lease: a VM whose ports are those of this machine. */
function leaseOf(): Lease {
  const vm = {
    agent: { host: '127.0.0.1', port: agentPort },
    secret: 's',
    addressOf: async (port: number) => ({ host: '127.0.0.1', port }),
    onEvent: () => {},
    setEgress: async (rules: EgressRules) => void applied.push(rules),
  };
  return {
    vm,
    tier: 'warm',
    signal: new AbortController().signal,
    active: true,
    discard() {},
  } as unknown as Lease;
}

before(async () => {
  if (noOpenssl) return;
  const dir = await mkdtemp(join(tmpdir(), 'thaw-https-'));
  cleanup.defer('files', () => rm(dir, { recursive: true, force: true }));
  const { certPath, keyPath } = makeAuthority(dir);
  const pair = { cert: await readFile(certPath), key: await readFile(keyPath) };
  agentPort = await listen(createPlain((_asked, answer) => answer.writeHead(204).end()));
  const secure = createSecure(pair, (asked, answer) => answer.end(`over TLS: ${asked.url}`));
  secure.on('upgrade', (_asked, socket) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n');
    socket.pipe(socket);
  });
  securePort = await listen(secure);
  const pool = { acquire: async () => leaseOf() } as unknown as Pool;
  sandboxes = new NodeSandboxes(pool, silentLog);
  cleanup.defer('sandbox', () => sandboxes.kill(request.sandboxId));
  await sandboxes.create({ ...request, httpsPorts: [securePort], egress: openEgress });
});
after(() => cleanup.run());

describe('a port that speaks TLS', { skip: noOpenssl }, () => {
  it('answers requests, whoever signed its certificate', async () => {
    const answer = await sandboxes.request(request.sandboxId, securePort, {
      method: 'GET',
      path: '/x',
      headers: { host: 'localhost' },
      body: null,
      signal: new AbortController().signal,
      timeoutMs: 5_000,
    });
    let text = '';
    for await (const chunk of answer.body) text += chunk;
    assert.equal(text, 'over TLS: /x');
  });

  it('takes upgrades', async () => {
    const clients = createServer((socket) => {
      const headers = ['Host', 'localhost', 'Connection', 'Upgrade', 'Upgrade', 'echo'];
      const asked = { method: 'GET', url: '/ws', rawHeaders: headers } as never;
      void sandboxes.upgrade(request.sandboxId, securePort, asked, socket, Buffer.alloc(0));
    });
    const client = connect(await listen(clients), '127.0.0.1');
    let text = '';
    client.on('data', (chunk) => {
      text += chunk;
    });
    await eventually('the upgrade', () => text.includes('101 Switching'));
    client.write('hello');
    await eventually('the echo', () => text.endsWith('hello'));
    client.destroy();
  });

  it('is one of a VM that was given its rules before anybody used it', () => {
    assert.deepEqual(applied, [openEgress]);
  });
});
