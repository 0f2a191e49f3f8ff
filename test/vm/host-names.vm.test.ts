// Sandboxes in real VMs by host name over TLS: `thaw up` with a domain and a certificate, and the unmodified client that
// knows just these. What it must see is what it sees of agents without a VM (test/edge).
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import {
  type Certificate,
  makeAuthority,
  makeCertificate,
  noOpenssl,
} from '../../services/gateway/certificate-for-tests.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import { assertServed, freePort, runClient } from '../edge/run-client.ts';
import { newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

const name = 'sandboxes.thaw.test';
const clientTimeoutMs = 240_000;
const cleanup = new Cleanup();
let thaw: ThawProcess;
let authority: Certificate;
let domain: string;

before(async () => {
  if (noOpenssl) return;
  const dir = await mkdtemp(join(tmpdir(), 'thaw-edge-'));
  cleanup.defer('certificates', () => rm(dir, { recursive: true, force: true }));
  authority = makeAuthority(dir);
  const { certPath, keyPath } = makeCertificate(authority, dir, name);
  const port = await freePort();
  domain = `${name}:${port}`;
  const dataDir = await newDataDir();
  cleanup.defer('data', () => removeDir(dataDir));
  thaw = await startThaw(dataDir, [], {
    THAW_DOMAIN: domain,
    THAW_TLS_CERT: certPath,
    THAW_TLS_KEY: keyPath,
    THAW_TLS_PORT: String(port),
  });
  cleanup.defer('thaw', () => thaw.end());
});
after(() => cleanup.run());

describe('VMs by host name over TLS', { skip: noOpenssl }, () => {
  it('serve the unmodified client', async () => {
    const settings = {
      E2B_DOMAIN: domain,
      E2B_API_KEY: thaw.apiKey,
      NODE_EXTRA_CA_CERTS: authority.certPath,
    };
    assertServed(await runClient(name, settings, clientTimeoutMs), domain);
  });
});
