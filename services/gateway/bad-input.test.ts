// What no client sends: bodies of any JSON and of none, ids and paths that would be something else elsewhere, on every
// route. A typed refusal in its own shape, never a 500, nothing of it at the node; the gateway serves on.
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { after, before, describe, it } from 'node:test';
import fc from 'fast-check';
import { eventually } from './eventually.ts';
import { type GatewayForTests, startGateway } from './gateway-for-tests.ts';
import { type Route, routesOf } from './routes-for-tests.ts';

let gateway: GatewayForTests;
/** Words that reached the node, whatever the call. */
const atNode: string[] = [];
before(async () => {
  gateway = await startGateway();
  listenAtNode();
});
after(() => gateway.close());

function listenAtNode(): void {
  const { node } = gateway;
  const methods = [
    'resolveTemplate',
    'inspectSnapshot',
    'removeSnapshot',
    'killSandbox',
    'captureSandbox',
    'sandboxRequest',
  ] as const;
  for (const method of methods) {
    const original = (node[method] as (...words: unknown[]) => unknown).bind(node);
    Object.assign(node, {
      [method]: (...words: unknown[]) => {
        atNode.push(JSON.stringify(words));
        return original(...words);
      },
    });
  }
}

async function assertTyped(answer: Response, label: string): Promise<void> {
  const text = await answer.text();
  if (answer.status < 400) return;
  assert.notEqual(answer.status, 500, `${label}: ${text}`);
  const { code, message, detail } = JSON.parse(text) as Record<string, unknown>;
  const shape =
    typeof code === 'number' ? [code, typeof message] : [answer.status, typeof (message ?? detail)];
  assert.deepEqual(shape, [answer.status, 'string'], `${label}: ${text}`);
}

/** A sandbox of its own for each call that needs one: many of them end it. */
async function newSandbox(): Promise<string> {
  const made = await gateway.call('/v2/sandboxes', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: '{"templateID":"base"}',
  });
  return ((await made.json()) as { sandboxID: string }).sandboxID;
}

const knownFields = [
  'templateID',
  'timeout',
  'metadata',
  'envVars',
  'autoPause',
  'autoPauseMemory',
  'autoResume',
  'allow_internet_access',
  'network',
  'volumeMounts',
  'mcp',
  'iam',
  'memory',
  'requireHealthyGuest',
  'name',
  'count',
  'duration',
  'allowOut',
  'denyOut',
  'rules',
  'egressProxy',
  'httpsPorts',
  'maskRequestHost',
  'allowPublicTraffic',
  'secure',
  'enabled',
];
const values = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.constantFrom(
    'base',
    '0.0.0.0/0',
    'example.com',
    -1,
    1e300,
    2 ** 53,
    '9'.repeat(400),
    '\u0000',
    '../..',
    '💥',
    null,
    [],
    {},
  ),
);
const fields = fc.dictionary(fc.constantFrom(...knownFields), values, { maxKeys: 8 });
const bodies = fc.oneof(
  { weight: 6, arbitrary: fields.map((body) => JSON.stringify(body)) },
  {
    weight: 3,
    arbitrary: fields.map((body) =>
      JSON.stringify({ templateID: 'base', network: body, metadata: body, envVars: body }),
    ),
  },
  { weight: 2, arbitrary: fc.jsonValue().map((body) => JSON.stringify(body)) },
  { weight: 1, arbitrary: fc.string() },
  {
    weight: 1,
    arbitrary: fc.constantFrom(
      '{',
      '[1,',
      '"',
      '{"__proto__":{"x":1}}',
      '{"a":1}{',
      '\ufeff{}',
      '['.repeat(5_000),
    ),
  },
);

describe('a body of any kind', () => {
  it('gets a typed answer from every route that takes one', async () => {
    const routes = routesOf(gateway.app).filter(({ method }) => !['GET', 'DELETE'].includes(method));
    const property = fc.asyncProperty(fc.constantFrom(...routes), bodies, async ({ method, path }, body) => {
      const sandboxId = path.includes('sandboxes/:id') ? await newSandbox() : '';
      const target = path.replace('sandboxes/:id', `sandboxes/${sandboxId}`).replace(/:\w+/g, 'unknown');
      const headers = { 'content-type': 'application/json' };
      const answer = await gateway.call(target, { method, headers, body });
      await assertTyped(answer, `${method} ${target} ${body}`);
      if (sandboxId !== '') await gateway.call(`/sandboxes/${sandboxId}`, { method: 'DELETE' });
    });
    await fc.assert(property, { numRuns: 400 });
    for (const { sandboxId } of gateway.state.sandboxes.list())
      await gateway.call(`/sandboxes/${sandboxId}`, { method: 'DELETE' });
  });

  it('is refused by its size and by its type before anybody reads it', async () => {
    const sandboxId = await newSandbox();
    const post = (path: string, type: string, body: string) =>
      gateway.call(path, { method: 'POST', headers: { 'content-type': type }, body });
    const large = await post(
      '/v2/sandboxes',
      'application/json',
      JSON.stringify({ templateID: 'x'.repeat(1_100_000) }),
    );
    assert.equal(large.status, 413);
    await assertTyped(large, 'a large body');
    for (const type of [
      'text/plain',
      'application/x-www-form-urlencoded',
      'multipart/form-data; boundary=x',
      'a/b;',
    ])
      await assertTyped(await post(`/sandboxes/${sandboxId}/pause`, type, 'memory=false'), type);
    assert.equal(gateway.state.sandboxes.get(sandboxId)!.state, 'running');
  });
});

const evil = [
  '..',
  '../x',
  '..%2f..%2fetc%2fpasswd',
  '%2e%2e',
  '%2e%2e%2f',
  '..%5c',
  '%00',
  'a%00b',
  'i%0a',
  '%f0%9f%92%a5',
  'ä',
  '%zz',
  '%',
  '%25%32%65',
  'i'.repeat(300),
  'x'.repeat(10_000),
  'I00000000000000000000',
  'i0000000000000000000',
  "'",
  '"',
  '$(id)',
  '{}',
  '*',
  '?',
  '#',
  '%20',
  'base%20',
  '-rf',
  '.hidden',
  '/etc',
  '//x',
  'a;b',
  '\\x',
];

describe('an id that is none', () => {
  it('is refused by every route before it reaches the node', async () => {
    const routes = routesOf(gateway.app).filter(({ path }) => path.includes(':'));
    assert.ok(routes.length > 20);
    atNode.splice(0);
    for (const route of routes)
      for (const word of evil) {
        const { status, text } = await rawCall(route, word);
        const label = `${route.method} ${route.path} ${word.slice(0, 40)}: ${status} ${text.slice(0, 200)}`;
        assert.ok(status >= 400 && status !== 500, label);
        if (text !== '') assert.ok('code' in (JSON.parse(text) as object), label);
      }
    // What names something unknown, but could name something, is asked for: nothing else may be.
    for (const words of atNode) assert.doesNotMatch(words, /\.\.|\\|%|\/\/|[^ -~]|x{200}|i{200}/, words);
    assert.equal((await gateway.call('/health')).status, 200);
  });

  /** As bytes: a client library would put the path in order first. */
  function rawCall({ method, path }: Route, word: string): Promise<{ status: number; text: string }> {
    const target = path.replace(/:\w+/g, word).replaceAll(' ', '%20');
    const socket = connect(gateway.port, '127.0.0.1');
    let answer = '';
    socket.setEncoding('latin1').on('data', (text) => {
      answer += text;
    });
    socket.on('error', () => {});
    const body = method === 'GET' ? '' : '{}';
    const head = [
      `${method} ${Buffer.from(target).toString('latin1')} HTTP/1.1`,
      'host: thaw',
      `x-api-key: ${gateway.apiKey}`,
      'content-type: application/json',
      `content-length: ${body.length}`,
      'connection: close',
    ];
    socket.write(`${head.join('\r\n')}\r\n\r\n${body}`, 'latin1');
    return new Promise((resolve) =>
      socket.on('close', () => {
        const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(answer)?.[1] ?? 0);
        resolve({ status, text: answer.slice(answer.indexOf('\r\n\r\n') + 4) });
      }),
    );
  }
});

describe('a routing header that is none', () => {
  it('ends at the gateway', async () => {
    atNode.splice(0);
    for (const id of [
      '..',
      '../../etc/passwd',
      '%2e%2e',
      'i'.repeat(2_000),
      'I00000000000000000000',
      ' ',
      '{}',
    ])
      for (const port of ['49983', '0', '-1', '65536', '1e3', '0x50', '80 80', '', 'x'.repeat(2_000)]) {
        const answer = await fetch(`${gateway.url}/`, {
          headers: { 'e2b-sandbox-id': id, 'e2b-sandbox-port': port },
        });
        await assertTyped(answer, `${id} ${port}`);
        assert.ok([400, 502].includes(answer.status), `${id} ${port}: ${answer.status}`);
      }
    assert.deepEqual(atNode, []);
  });

  it('and half a request end without harm', async () => {
    const sockets = Array.from({ length: 20 }, () => connect(gateway.port, '127.0.0.1'));
    let closed = 0;
    for (const [at, socket] of sockets.entries()) {
      socket
        .on('error', () => {})
        .on('close', () => closed++)
        .resume();
      socket.write(
        [
          '\r\n\r\n',
          'GET',
          'GET / HTTP/9.9\r\n\r\n',
          'POST /v2/sandboxes HTTP/1.1\r\ncontent-length: -1\r\n\r\n',
          '\u0000\u0001\u0002\r\n\r\n',
        ][at % 5]!,
      );
      socket.end();
    }
    await eventually('all are gone', () => closed === sockets.length);
    assert.equal((await gateway.call('/v2/sandboxes')).status, 200);
  });
});
