// Network settings: taken at create, shown, replaced while it runs, and refused where Thaw does not offer them.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b, url }: Stage): Promise<void> => {
  const sandbox = await e2b.Sandbox.create('base', {
    network: { denyOut: ['9.9.9.0/24'], allowPublicTraffic: false },
  });
  try {
    const shown = (await sandbox.getInfo()).network;
    assert.deepEqual([shown?.denyOut, shown?.allowPublicTraffic], [['9.9.9.0/24'], false]);
    const headers = {
      host: sandbox.getHost(1),
      'e2b-sandbox-id': sandbox.sandboxId,
      'e2b-sandbox-port': '1',
    };
    const closed = await fetch(url, { headers });
    assert.equal(closed.status, 403);
    const token = { 'e2b-traffic-access-token': sandbox.trafficAccessToken! };
    assert.equal((await fetch(url, { headers: { ...headers, ...token } })).status, 502);
    await sandbox.updateNetwork({ denyOut: ['8.8.8.8'] });
    assert.deepEqual((await sandbox.getInfo()).network?.denyOut, ['8.8.8.8']);
  } finally {
    await sandbox.kill();
  }
  const rules = { 'example.com': [{ transform: { headers: { a: 'b' } } }] };
  await assert.rejects(e2b.Sandbox.create('base', { network: { rules } }), /network\.rules is not offered/);
};
