// Network settings of sandboxes: what is kept, what is refused, what is shown; and ports that are not public.
import assert from 'node:assert/strict';
import { request as httpRequest } from 'node:http';
import { connect } from 'node:net';
import { after, before, beforeEach, describe, it } from 'node:test';
import { ALL_TRAFFIC, Sandbox } from 'e2b';
import { eventually } from '../eventually.ts';
import { type GatewayForTests, startGateway } from '../gateway-for-tests.ts';
import type { Echo } from '../simulated-node-client.ts';

let gateway: GatewayForTests;
before(async () => {
  gateway = await startGateway();
});
after(() => gateway.close());
beforeEach(() => {
  gateway.node.egress = 'by-address';
});

const maskWithPort = `localhost:\${PORT}`;
const connection = () => ({ apiKey: gateway.apiKey, apiUrl: gateway.url, sandboxUrl: gateway.url });
const create = (options = {}) => Sandbox.create('base', { ...connection(), ...options });
const send = (method: string, path: string, body: unknown) =>
  gateway.call(path, { method, headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
const createWith = (network: unknown, more = {}) =>
  send('POST', '/v2/sandboxes', { templateID: 'base', network, ...more });
const egressOf = (sandboxId: string) => gateway.node.sandboxes.get(sandboxId)!.egress;

/** Status and body of GET / on a port. */
async function get(sandboxId: string, port: number, headers: Record<string, string> = {}) {
  const response = await fetch(`${gateway.url}/`, {
    headers: { 'e2b-sandbox-id': sandboxId, 'e2b-sandbox-port': String(port), ...headers },
  });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

describe('egress rules', () => {
  it('reach the node, are shown, and outlive a pause', async () => {
    const sandbox = await create({
      network: { allowOut: ['1.1.1.1', '8.8.8.0/24'], denyOut: () => [ALL_TRAFFIC] },
      metadata: { a: 'b' },
    });
    const rules = { allowInternetAccess: true, allowOut: ['1.1.1.1', '8.8.8.0/24'], denyOut: ['0.0.0.0/0'] };
    assert.deepEqual(egressOf(sandbox.sandboxId), rules);
    const info = await sandbox.getInfo();
    assert.deepEqual(info.network?.allowOut, rules.allowOut);
    assert.deepEqual(info.network?.denyOut, rules.denyOut);
    assert.equal(info.allowInternetAccess, false);
    await sandbox.pause();
    await Sandbox.connect(sandbox.sandboxId, connection());
    assert.deepEqual(egressOf(sandbox.sandboxId), rules);
    const [fork] = await sandbox.fork();
    assert.deepEqual(egressOf((fork as Sandbox).sandboxId), rules);
  });

  it('are replaced as a whole while it runs', async () => {
    const sandbox = await create({
      network: { allowOut: ['1.1.1.1'], maskRequestHost: maskWithPort },
    });
    await sandbox.updateNetwork({ denyOut: ['9.9.9.9'] });
    assert.deepEqual(egressOf(sandbox.sandboxId), {
      allowInternetAccess: true,
      allowOut: [],
      denyOut: ['9.9.9.9'],
    });
    const { network } = await sandbox.getInfo();
    assert.deepEqual([network?.allowOut, network?.denyOut], [undefined, ['9.9.9.9']]);
    assert.equal(network?.maskRequestHost, maskWithPort, 'an update is of the way out alone');
    await sandbox.updateNetwork({ allowInternetAccess: false });
    assert.equal((await sandbox.getInfo()).allowInternetAccess, false);
    await sandbox.updateNetwork({});
    assert.equal((await sandbox.getInfo()).allowInternetAccess, true);
    await sandbox.pause();
    assert.equal((await send('PUT', `/sandboxes/${sandbox.sandboxId}/network`, {})).status, 409);
    assert.equal((await send('PUT', '/sandboxes/i00000000000000000000/network', {})).status, 404);
  });

  it('are refused where the node cannot keep them, and nothing is left', async () => {
    const refusals: ['closed' | 'by-address' | 'open', object, object?][] = [
      ['closed', { allowOut: ['1.1.1.1'] }],
      ['open', { denyOut: ['1.1.1.1'] }],
      ['open', {}, { allow_internet_access: false }],
      ['by-address', { allowOut: ['example.com'], denyOut: ['0.0.0.0/0'] }],
      ['by-address', { allowOut: ['2606:4700::1111'] }],
      ['by-address', { rules: { 'example.com': [{}] } }],
      ['by-address', { egressProxy: { address: 'proxy.example.com:1080' } }],
    ];
    const before = gateway.node.sandboxes.size;
    for (const [ability, network, more] of refusals) {
      gateway.node.egress = ability;
      const response = await createWith(network, more);
      assert.equal(response.status, 501, JSON.stringify([ability, network]));
      assert.match(((await response.json()) as { message: string }).message, /not offered/);
    }
    assert.equal(gateway.node.sandboxes.size, before);
    gateway.node.egress = 'closed';
    const sandbox = await create({ network: { denyOut: ['1.1.1.1'] }, allowInternetAccess: true });
    assert.equal((await sandbox.getInfo()).allowInternetAccess, false, 'what holds is shown');
    await assert.rejects(sandbox.updateNetwork({ allowOut: ['1.1.1.1'] }), /501.*no way out/);
    await sandbox.updateNetwork({ denyOut: ['2.2.2.2'] });
  });

  it('are refused when they make no sense', async () => {
    for (const network of [
      { denyOut: ['example.com'] },
      { denyOut: ['1.2.3.4/33'] },
      { denyOut: ['1.2.3.4/'] },
      { denyOut: ['1.2.3.4/8/8'] },
      { allowOut: ['1.2.3.300'], denyOut: ['0.0.0.0/0'] },
      { allowOut: ['exa mple.com'], denyOut: ['0.0.0.0/0'] },
      { allowOut: ['example.com'] },
      { allowOut: ['*'], denyOut: ['0.0.0.0/0'] },
      { allowOut: [''] },
      { allowOut: 'example.com' },
      { allowOut: Array.from({ length: 257 }, () => '1.1.1.1') },
      { allowOut: ['x'.repeat(254)] },
      { allowPublicTraffic: 'no' },
      { maskRequestHost: 'a\r\nx: y' },
      { maskRequestHost: 'a/b' },
      { httpsPorts: [49983] },
      { httpsPorts: [0] },
      { httpsPorts: [70_000] },
    ])
      assert.equal((await createWith(network)).status, 400, JSON.stringify(network).slice(0, 80));
  });
});

describe('a sandbox without public traffic', () => {
  it('serves its ports to the token alone, and the agent as ever', async () => {
    const sandbox = await create({ network: { allowPublicTraffic: false } });
    const { sandboxId, trafficAccessToken } = sandbox;
    assert.match(trafficAccessToken!, /^[0-9a-f]{64}$/);
    assert.equal((await sandbox.getInfo()).network?.allowPublicTraffic, false);
    const missing = await get(sandboxId, 8000);
    assert.equal(missing.status, 403);
    assert.deepEqual([missing.body.code, missing.body.sandboxId], [403, sandboxId]);
    assert.match(String(missing.body.message), /e2b-traffic-access-token is missing/);
    const other = await create({ network: { allowPublicTraffic: false } });
    for (const token of ['', 'x', `${trafficAccessToken}0`, other.trafficAccessToken!])
      assert.equal((await get(sandboxId, 8000, { 'e2b-traffic-access-token': token })).status, 403);
    assert.equal((await get(sandboxId, 9999)).status, 403, 'not even which ports are open');
    const token = { 'e2b-traffic-access-token': trafficAccessToken! };
    const seen = (await get(sandboxId, 8000, token)).body as unknown as Echo;
    assert.equal(seen.headers['e2b-traffic-access-token'], undefined, 'it was for the gateway');
    assert.equal((await get(sandboxId, 49983)).status, 200);
    assert.equal(await sandbox.isRunning(), true);
  });

  it('keeps its token over a pause; traffic without it wakes nobody', async () => {
    const sandbox = await create({
      network: { allowPublicTraffic: false },
      lifecycle: { onTimeout: 'pause', autoResume: true },
    });
    const { sandboxId, trafficAccessToken } = sandbox;
    await sandbox.pause();
    assert.equal((await get(sandboxId, 8000)).status, 403);
    assert.equal((await sandbox.getInfo()).state, 'paused');
    const token = { 'e2b-traffic-access-token': trafficAccessToken! };
    assert.equal((await get(sandboxId, 8000, token)).status, 200);
    assert.equal((await sandbox.getInfo()).state, 'running');
    assert.equal((await Sandbox.connect(sandboxId, connection())).trafficAccessToken, trafficAccessToken);
    const [fork] = await sandbox.fork();
    assert.notEqual((fork as Sandbox).trafficAccessToken, trafficAccessToken);
    assert.match((fork as Sandbox).trafficAccessToken!, /^[0-9a-f]{64}$/);
    await gateway.restart();
    assert.equal(gateway.state.sandboxes.get(sandboxId)!.trafficAccessToken, trafficAccessToken);
  });

  it('refuses upgrades, too', async () => {
    const { sandboxId, trafficAccessToken } = await create({ network: { allowPublicTraffic: false } });
    const upgrade = async (more: string, wanted: RegExp) => {
      const socket = connect(gateway.port, '127.0.0.1');
      let text = '';
      socket.on('data', (chunk) => {
        text += chunk;
      });
      const lines = [`Host: 8000-${sandboxId}.t.test`, 'Connection: Upgrade', 'Upgrade: websocket'];
      socket.write(`GET /ws HTTP/1.1\r\n${lines.join('\r\n')}\r\n${more}\r\n`);
      await eventually(String(wanted), () => wanted.test(text));
      socket.destroy();
    };
    await upgrade('', /^HTTP\/1\.1 403 /);
    await upgrade(`e2b-traffic-access-token: ${trafficAccessToken}\r\n`, /^HTTP\/1\.1 101 /);
  });
});

describe('a masked host', () => {
  it('is what the program in the sandbox sees, and the agent does not', async () => {
    const { sandboxId } = await create({ network: { maskRequestHost: maskWithPort } });
    const seenBy = (port: number) =>
      new Promise<Echo>((resolve, reject) => {
        const host = `${port}-${sandboxId}.t.test`;
        const asked = httpRequest(
          { host: '127.0.0.1', port: gateway.port, headers: { host } },
          async (answer) => {
            const chunks: Buffer[] = [];
            for await (const chunk of answer) chunks.push(chunk);
            resolve(JSON.parse(Buffer.concat(chunks).toString()) as Echo);
          },
        );
        asked.on('error', reject).end();
      });
    const seen = await seenBy(8000);
    assert.equal(seen.headers.host, 'localhost:8000');
    assert.equal(seen.headers['x-forwarded-host'], `8000-${sandboxId}.t.test`);
    assert.equal((await seenBy(49983)).headers.host, `49983-${sandboxId}.t.test`);
  });
});
