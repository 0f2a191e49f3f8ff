// Host names over TLS: the client knows a domain, a key and an authority, and nothing of a server's address.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';
import { eventually } from './scenario.ts';

export default async ({ e2b, skip }: Stage): Promise<void> => {
  const domain = process.env.THAW_TEST_HOST_NAMES;
  if (domain === undefined) return skip('this server has no host names');
  const { E2B_API_URL, E2B_SANDBOX_URL } = process.env;
  delete process.env.E2B_API_URL;
  delete process.env.E2B_SANDBOX_URL;
  try {
    await useByName(e2b, domain);
  } finally {
    Object.assign(process.env, { E2B_API_URL, E2B_SANDBOX_URL });
  }
};

async function useByName(e2b: Stage['e2b'], domain: string): Promise<void> {
  const sandbox = await e2b.Sandbox.create('base', { domain, network: { allowPublicTraffic: false } });
  try {
    assert.equal((await sandbox.commands.run('printf named')).stdout, 'named');
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    assert.equal(sandbox.getHost(port), `${port}-${sandbox.sandboxId}.${domain}`);
    await sandbox.files.write('index.html', 'served');
    await sandbox.commands.run(`python3 -m http.server ${port}`, { background: true, timeoutMs: 0 });
    const token = { 'e2b-traffic-access-token': sandbox.trafficAccessToken! };
    const ask = (headers?: Record<string, string>) =>
      fetch(`https://${sandbox.getHost(port)}/`, headers === undefined ? {} : { headers });
    await eventually('an answer', async () => (await (await ask(token)).text()) === 'served');
    assert.equal((await ask()).status, 403);
    const link = await sandbox.downloadUrl('index.html', { useSignatureExpiration: 60_000 });
    assert.equal(new URL(link).host, sandbox.getHost(49_983));
    assert.equal(await (await fetch(link)).text(), 'served');
    const expired = await sandbox.downloadUrl('index.html', { useSignatureExpiration: -60_000 });
    assert.equal((await fetch(expired)).status, 401);
  } finally {
    await sandbox.kill();
  }
}
