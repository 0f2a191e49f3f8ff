// Owns the server that the scenarios are tried against where no VM is needed: sandboxes are agent processes, reached by
// address, and by host name over TLS with an authority and a wildcard certificate of its own.
// Its forward proxy stands in for the wildcard DNS record: clients of several languages take one as a setting.
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeAuthority, makeCertificate, noOpenssl } from '../../services/gateway/certificate-for-tests.ts';
import { TlsDoor } from '../../services/gateway/tls-door.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { silentLog } from '../../shared/log.ts';
import { freePort } from '../edge/run-client.ts';
import { startAgentGateway } from '../sdk/sdk-world.ts';
import type { Server } from './matrix.ts';

const domain = 'sandboxes.thaw.test';

export async function openCompatWorld(): Promise<Server & { close(): Promise<unknown> }> {
  const cleanup = new Cleanup();
  try {
    if (noOpenssl) return await startAgentGateway(cleanup);
    const dir = await mkdtemp(join(tmpdir(), 'thaw-compat-'));
    cleanup.defer('files', () => rm(dir, { recursive: true, force: true }));
    const authority = makeAuthority(dir);
    const pair = makeCertificate(authority, dir, domain);
    const port = await freePort();
    const names = { domain: `${domain}:${port}`, authorityPath: authority.certPath };
    const world = await startAgentGateway(cleanup, { domain: names.domain }, async (app) => {
      const door = await TlsDoor.open(app, { ...pair, log: silentLog, lookEveryMs: 60_000 });
      await door.listen('127.0.0.1', port);
    });
    return { ...world, names: { ...names, proxyUrl: await startProxy(cleanup, port) } };
  } catch (error) {
    await cleanup.run();
    throw error;
  }
}

/** Leads every name to the one port. */
async function startProxy(cleanup: Cleanup, port: number): Promise<string> {
  const proxy = createServer();
  proxy.on('connect', (_request, socket, head) => {
    const server = connect(port, '127.0.0.1', () => {
      socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
      server.write(head);
      server.pipe(socket).pipe(server);
    });
    for (const [one, other] of [
      [socket, server],
      [server, socket],
    ] as const)
      one.on('error', () => {}).once('close', () => other.destroy());
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  cleanup.defer('proxy', () => proxy.close().closeAllConnections());
  return `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
}
