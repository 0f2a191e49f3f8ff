// Holds the gateway to sandboxes by host name over TLS: an authority of the test's own, a wildcard certificate, the
// unmodified client in a process of its own, a real agent behind. The wildcard DNS record is names-resolve-here.ts.
import assert from 'node:assert/strict';
import { chmodSync, readFileSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls';
import { pino } from 'pino';
import {
  type Certificate,
  makeAuthority,
  makeCertificate,
  noOpenssl,
} from '../../services/gateway/certificate-for-tests.ts';
import { eventually } from '../../services/gateway/eventually.ts';
import { readTlsPair, TlsDoor } from '../../services/gateway/tls-door.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { type SdkWorld, startAgentGateway } from '../sdk/sdk-world.ts';
import { assertServed, freePort, runClient } from './run-client.ts';

const domain = 'sandboxes.thaw.test';
const cleanup = new Cleanup();
const logged: string[] = [];
const log = pino({}, { write: (line: string) => void logged.push(line) });
let world: SdkWorld;
let dir: string;
let authority: Certificate;
let pair: Certificate;
let port: number;

before(async () => {
  if (noOpenssl) return;
  dir = await mkdtemp(join(tmpdir(), 'thaw-edge-'));
  cleanup.defer('files', () => rm(dir, { recursive: true, force: true }));
  authority = makeAuthority(dir);
  pair = makeCertificate(authority, dir, domain);
  port = await freePort();
  world = await startAgentGateway(cleanup, { domain: `${domain}:${port}` }, async (app) => {
    const door = await TlsDoor.open(app, { ...pair, log, lookEveryMs: 20 });
    await door.listen('127.0.0.1', port);
  });
});
after(() => cleanup.run());

function handshake(options: ConnectionOptions = {}): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const ca = readFileSync(authority.certPath);
    const socket = connect({ host: '127.0.0.1', port, servername: `api.${domain}`, ca, ...options });
    socket.on('error', reject).on('secureConnect', () => resolve(socket));
  });
}

describe('sandboxes by host name over TLS', { skip: noOpenssl }, () => {
  const runAgainst = (settings: Record<string, string>) => {
    const known = { E2B_API_KEY: world.apiKey, NODE_EXTRA_CA_CERTS: authority.certPath };
    return runClient(domain, { ...known, ...settings }, 60_000);
  };

  it('serve the unmodified client that knows a domain, a key and an authority', async () => {
    assertServed(await runAgainst({ E2B_DOMAIN: `${domain}:${port}` }), `${domain}:${port}`);
  });

  it('are reached where the answer to create says, whatever else the client was told', async () => {
    const seen = await runAgainst({ E2B_API_URL: world.apiUrl, E2B_DOMAIN: 'elsewhere.test' });
    assertServed(seen, `${domain}:${port}`);
  });

  it('speak TLS 1.2 and 1.3 and HTTP/1.1, and nothing older', async () => {
    for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
      const socket = await handshake({
        minVersion: version,
        maxVersion: version,
        ALPNProtocols: ['h2', 'http/1.1'],
      });
      assert.deepEqual([socket.getProtocol(), socket.alpnProtocol], [version, 'http/1.1']);
      socket.destroy();
    }
    await assert.rejects(
      handshake({ minVersion: 'TLSv1', maxVersion: 'TLSv1.1', ciphers: 'ALL:@SECLEVEL=0' }),
    );
    await assert.rejects(handshake({ servername: 'elsewhere.test' }), /altnames/);
  });

  it('outlive those who speak no TLS to them', async () => {
    const plain = await fetch(`http://127.0.0.1:${port}/health`).catch((error: Error) => error);
    assert.ok(plain instanceof Error);
    (await handshake()).destroy();
  });

  it('show a new certificate when the files change, and the old one while the new is unusable', async () => {
    const shown = async () => {
      const socket = await handshake();
      const { fingerprint256 } = socket.getPeerCertificate();
      socket.destroy();
      return fingerprint256;
    };
    const first = await shown();
    makeCertificate(authority, dir, domain);
    await eventually('the new one is shown', async () => (await shown()) !== first);
    const second = await shown();
    await writeFile(pair.certPath, 'no certificate');
    await eventually('the refusal is logged', () =>
      logged.some((line) => line.includes('the one before stays')),
    );
    assert.equal(await shown(), second);
    makeCertificate(authority, dir, domain);
    await eventually('the third is shown', async () => (await shown()) !== second);
  });
});

describe('a certificate', { skip: noOpenssl }, () => {
  it('is refused with what to do about it', async () => {
    const own = await mkdtemp(join(dir, 'own-'));
    const { certPath, keyPath } = makeCertificate(authority, own, domain);
    for (const mode of [0o640, 0o604, 0o660]) {
      chmodSync(keyPath, mode);
      await assert.rejects(readTlsPair({ certPath, keyPath }), { code: 'bad-config', message: /chmod 600/ });
    }
    chmodSync(keyPath, 0o400);
    await readTlsPair({ certPath, keyPath });
    await assert.rejects(
      readTlsPair({ certPath, keyPath: join(own, 'none') }),
      /THAW_TLS_KEY: .*none cannot be read/,
    );
    await assert.rejects(readTlsPair({ certPath: authority.certPath, keyPath }), /cannot be used together/);
    await assert.rejects(readTlsPair({ certPath: keyPath, keyPath }), { code: 'bad-config' });
  });
});
