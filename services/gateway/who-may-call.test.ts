// Every route of the gateway, called without a key, with a wrong one, and with words that are secrets of something else:
// refused, in the shape of its kind, and nothing of what is behind it said or changed.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { newApiKey, newSandboxId } from '../../shared/ids.ts';
import { type GatewayForTests, startGateway } from './gateway-for-tests.ts';
import { type Route, routesOf } from './routes-for-tests.ts';

/** Open to all, on purpose. */
const open = new Set(['GET /health', 'GET /v1/openapi.json']);

let gateway: GatewayForTests;
let sandbox: { sandboxID: string; envdAccessToken: string; trafficAccessToken: string };
let snapshotId: string;
let stateBefore: string;

const callFor = async (path: string, body: unknown) =>
  (
    await gateway.call(path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    })
  ).json();

before(async () => {
  gateway = await startGateway();
  await gateway.deployEcho('secret-function');
  sandbox = (await callFor('/v2/sandboxes', {
    templateID: 'base',
    metadata: { secret: 'in-metadata' },
    network: { allowPublicTraffic: false },
  })) as typeof sandbox;
  const path = `/sandboxes/${sandbox.sandboxID}/snapshots`;
  snapshotId = ((await callFor(path, { name: 'secret-snapshot' })) as { snapshotID: string }).snapshotID;
  stateBefore = await stateNow();
});
after(() => gateway.close());

async function stateNow(): Promise<string> {
  const paths = [
    '/v2/sandboxes',
    `/sandboxes/${sandbox.sandboxID}`,
    '/snapshots',
    '/v1/snapshots',
    '/v1/functions',
  ];
  return JSON.stringify(await Promise.all(paths.map(async (path) => (await gateway.call(path)).text())));
}

/** The path of something that is there. */
const realPathOf = ({ path }: Route): string =>
  path
    .replace(/^(\/(?:v2\/)?sandboxes)\/:id/, `$1/${sandbox.sandboxID}`)
    .replace(/^(\/v1\/snapshots|\/(?:v2\/)?templates)\/:\w+/, `$1/${snapshotId}`)
    .replace(/^(\/v1\/functions)\/:name/, '$1/secret-function')
    .replace(/:version$/, '1')
    .replace(/:hash$/, 'a'.repeat(64))
    .replace(/:\w+/g, 'secret-snapshot');

const credentials = (): [what: string, headers: Record<string, string>][] => [
  ['none', {}],
  ['an empty key', { 'x-api-key': '' }],
  ['a wrong key', { 'x-api-key': newApiKey() }],
  ['a key cut short', { 'x-api-key': gateway.apiKey.slice(0, -1) }],
  ['a key and more', { 'x-api-key': `${gateway.apiKey}0` }],
  ['a wrong bearer', { authorization: `Bearer ${newApiKey()}` }],
  ['a key as basic', { authorization: `Basic ${Buffer.from(`:${gateway.apiKey}`).toString('base64')}` }],
  [
    'a token of a sandbox',
    { 'x-api-key': sandbox.envdAccessToken, 'x-access-token': sandbox.envdAccessToken },
  ],
  ['a traffic token', { authorization: `Bearer ${sandbox.trafficAccessToken}` }],
  ['a very long key', { 'x-api-key': 'k'.repeat(8_000) }],
];

describe('every route', () => {
  it('is in the table', () => {
    const routes = routesOf(gateway.app).map(({ method, path }) => `${method} ${path}`);
    assert.ok(routes.length > 40, String(routes.length));
    for (const known of [
      'POST /v2/sandboxes',
      'PUT /sandboxes/:id/network',
      'GET /v1/functions/:name/versions/:version',
    ])
      assert.ok(routes.includes(known), known);
  });

  it('refuses all who have no key of this server, and tells them nothing', async () => {
    const secrets = /in-metadata|secret-function|secret-snapshot|[0-9a-f]{64}/;
    for (const route of routesOf(gateway.app)) {
      const { method } = route;
      if (open.has(`${method} ${route.path}`)) continue;
      const path = realPathOf(route);
      for (const [what, headers] of credentials()) {
        const body = method === 'GET' || method === 'DELETE' ? {} : { body: '{}' };
        const answer = await fetch(`${gateway.url}${path}?apiKey=${gateway.apiKey}`, {
          method,
          headers: { 'content-type': 'application/json', ...headers },
          ...body,
        });
        const text = await answer.text();
        const label = `${method} ${path} with ${what}: ${answer.status} ${text}`;
        assert.ok(answer.status === 401 || answer.status === 403, label);
        const { code } = JSON.parse(text) as { code: unknown };
        assert.ok(path.startsWith('/v1/') ? typeof code === 'string' : code === answer.status, label);
        assert.doesNotMatch(text.replaceAll(gateway.apiKey, ''), secrets, label);
        assert.equal(answer.headers.get('x-next-token'), null, label);
      }
    }
    assert.equal(await stateNow(), stateBefore, 'nothing was changed');
  });

  it('says the same of what is there and of what is not', async () => {
    for (const id of [sandbox.sandboxID, newSandboxId(), '..%2f..'])
      for (const method of ['GET', 'DELETE']) {
        const answer = await fetch(`${gateway.url}/sandboxes/${id}`, { method });
        assert.deepEqual([answer.status, ((await answer.json()) as { code: number }).code], [401, 401]);
      }
  });
});
