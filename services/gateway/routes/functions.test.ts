import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { gzipSync } from 'node:zlib';
import { ThawError } from '../../../shared/errors.ts';
import { eventually } from '../eventually.ts';
import { type GatewayForTests, startGateway, tarball } from '../gateway-for-tests.ts';

let gateway: GatewayForTests;
before(async () => {
  gateway = await startGateway({ maxBundleBytes: 1024 * 1024, maxBuilds: 2 });
});
after(() => gateway.close());

// biome-ignore lint/suspicious/noExplicitAny: answers are looked into field by field
type Body = Record<string, any>;
const json = async (response: Response) => (await response.json()) as Body;

async function deploy(name: string, files: Record<string, string>, headers: Record<string, string> = {}) {
  const body = new Uint8Array(await tarball(files));
  const all = { prefer: 'wait=10', 'content-type': 'application/x-tar', ...headers };
  return gateway.call(`/v1/functions/${name}/versions`, { method: 'POST', body, headers: all });
}

async function assertProblem(response: Response, status: number, code: string, words = /./): Promise<void> {
  const body = await json(response);
  assert.equal(response.status, status, JSON.stringify(body));
  assert.equal(response.headers.get('content-type'), 'application/problem+json');
  assert.equal(body.code, code);
  assert.match(body.detail, words);
}

/** A build that ends when the test says so. */
function holdBuilds(): () => void {
  let release = () => {};
  gateway.node.buildGate = new Promise((resolve) => {
    release = resolve;
  });
  return () => {
    gateway.node.buildGate = Promise.resolve();
    release();
  };
}

describe('functions', () => {
  it('need a key', async () => {
    for (const [method, path] of [
      ['GET', '/v1/functions'],
      ['POST', '/v1/functions/a/versions'],
      ['DELETE', '/v1/functions/a'],
      ['GET', '/v1/functions/a/logs'],
    ] as const)
      await assertProblem(await fetch(`${gateway.url}${path}`, { method }), 401, 'unauthenticated');
  });

  it('are deployed, waited for, shown and invoked', async () => {
    const made = await deploy('first', { 'index.js': 'export default {}' });
    const body = await json(made);
    assert.equal(made.status, 201, JSON.stringify(body));
    assert.equal(made.headers.get('location'), '/v1/functions/first/versions/1');
    assert.equal(made.headers.get('preference-applied'), 'wait=10');
    assert.equal(body.state, 'ready');
    assert.equal(body.manifest.runtime, 'node');
    assert.match(body.snapshotId, /^snap-/);
    assert.equal((await fetch(`${gateway.url}/fn/first/hi`)).status, 200);
    const one = await json(await gateway.call('/v1/functions/first'));
    assert.equal(one.currentVersion, 1);
    assert.deepEqual(one.pool, { warm: 1 });
    const all = await json(await gateway.call('/v1/functions'));
    assert.ok(all.functions.some((view: Body) => view.name === 'first' && view.pool.warm === 1));
    const versions = await json(await gateway.call('/v1/functions/first/versions'));
    assert.equal(versions.versions.length, 1);
    assert.equal((await json(await gateway.call('/v1/functions/first/versions/1'))).state, 'ready');
    await assertProblem(await gateway.call('/v1/functions/first/versions/9'), 404, 'function-not-found');
    await assertProblem(await gateway.call('/v1/functions/first/versions/x'), 400, 'bad-name');
  });

  it('answer 202 while a build runs, refuse a second one, and keep the old version serving', async () => {
    await deploy('steady', { 'index.js': '1' });
    const release = holdBuilds();
    const response = await deploy('steady', { 'index.js': '2' }, { prefer: '' });
    assert.equal(response.status, 202);
    assert.equal(response.headers.get('location'), '/v1/functions/steady/versions/2');
    assert.equal((await json(response)).state, 'building');
    assert.equal(gateway.state.functions.resolve('steady')?.version, 1);
    assert.equal((await fetch(`${gateway.url}/fn/steady/`)).status, 200);
    await assertProblem(await deploy('steady', { 'index.js': '3' }), 409, 'conflict', /being built/);
    await assertProblem(await gateway.call('/v1/functions/steady', { method: 'DELETE' }), 409, 'conflict');
    release();
    await eventually('the switch', () => gateway.state.functions.resolve('steady')?.version === 2);
    assert.equal((await fetch(`${gateway.url}/fn/steady@1/`)).status, 200);
  });

  it('wait no longer than the client asked', async () => {
    const release = holdBuilds();
    const response = await deploy('patient', { 'index.js': '1' }, { prefer: 'respond-async, wait=1' });
    assert.equal(response.status, 202);
    assert.equal(response.headers.get('preference-applied'), null);
    release();
    await eventually('ready', () => gateway.state.functions.resolve('patient') !== undefined);
  });

  it('report a failed build with its output, and keep the old version', async () => {
    await deploy('fragile', { 'index.js': '1' });
    gateway.node.buildOutput = 'npm error: no such package\n';
    gateway.node.failures.set('deploy', new ThawError('build-failed', 'the build ended with status 1'));
    const failed = await deploy('fragile', { 'index.js': '2' });
    gateway.node.failures.clear();
    gateway.node.buildOutput = 'building\n';
    assert.equal(failed.headers.get('location'), '/v1/functions/fragile/versions/2');
    await assertProblem(failed, 422, 'build-failed', /status 1\nnpm error: no such package/);
    const version = await json(await gateway.call('/v1/functions/fragile/versions/2'));
    assert.equal(version.state, 'failed');
    assert.equal(version.error.code, 'build-failed');
    assert.match(version.error.output, /no such package/);
    assert.equal(gateway.state.functions.resolve('fragile')?.version, 1);
    assert.equal((await fetch(`${gateway.url}/fn/fragile/`)).status, 200);
    const next = await deploy('fragile', { 'index.js': '3' });
    assert.equal((await json(next)).version, 3);
  });

  it('keep two versions, without warm VMs for the older one, and drop bundles nobody needs', async () => {
    for (const content of ['1', '2', '3']) await deploy('rolling', { 'index.js': `rolling ${content}` });
    await eventually('the oldest is retired', () => gateway.node.retired.includes('rolling@1'));
    assert.equal(gateway.state.functions.resolve('rolling', 1), undefined);
    await assertProblem(await fetch(`${gateway.url}/fn/rolling@1/`), 404, 'function-not-found');
    assert.equal(gateway.node.served.get('rolling@2')?.manifest.warm.min, 0);
    assert.equal(gateway.node.served.get('rolling@3')?.manifest.warm.min, 1);
    const kept = (await readdir(gateway.bundleDir)).length;
    assert.equal((await gateway.call('/v1/functions/rolling', { method: 'DELETE' })).status, 204);
    assert.equal((await readdir(gateway.bundleDir)).length, kept - 2);
    assert.deepEqual(
      gateway.node.retired.filter((key) => key.startsWith('rolling')),
      ['rolling@1', 'rolling@3', 'rolling@2'],
    );
    await assertProblem(
      await gateway.call('/v1/functions/rolling', { method: 'DELETE' }),
      404,
      'function-not-found',
    );
  });

  it('change without a build, and roll back', async () => {
    await deploy('tuned', { 'index.js': '1' });
    await deploy('tuned', { 'index.js': '2' });
    const patch = (body: unknown) =>
      gateway.call('/v1/functions/tuned', {
        method: 'PATCH',
        body: JSON.stringify(body),
        headers: { 'content-type': 'application/json' },
      });
    const changed = await json(await patch({ warm: { min: 2, max: 4 }, timeoutMs: 50 }));
    assert.equal(changed.current.manifest.timeoutMs, 50);
    assert.deepEqual(gateway.node.served.get('tuned@2')?.manifest.warm, { min: 2, max: 4 });
    await assertProblem(await fetch(`${gateway.url}/fn/tuned/never`), 504, 'deadline-exceeded');
    assert.equal((await json(await patch({ version: 1 }))).currentVersion, 1);
    assert.equal(gateway.node.served.get('tuned@2')?.manifest.warm.min, 0);
    await assertProblem(await patch({ version: 7 }), 404, 'function-not-found');
    await assertProblem(await patch({ warm: { min: 5, max: 4 } }), 400, 'bad-request', /warm\.min/);
    await assertProblem(await patch({ timeoutMs: 'long' }), 400, 'bad-request', /timeoutMs/);
    await assertProblem(await patch({ runtime: 'python' }), 400, 'bad-request');
    await assertProblem(
      await gateway.call('/v1/functions/tuned', {
        method: 'PATCH',
        body: '{',
        headers: { 'content-type': 'application/json' },
      }),
      400,
      'bad-request',
    );
  });

  it('refuse bad uploads with the reason', async () => {
    await assertProblem(await deploy('Bad', { 'index.js': '' }), 400, 'bad-name');
    await assertProblem(await deploy('bad', { 'readme.md': '' }), 400, 'bad-manifest', /index\.js/);
    await assertProblem(await deploy('bad', { '../x': '' }), 400, 'bad-bundle', /'\.\.'/);
    await assertProblem(
      await deploy('bad', { 'thaw.json': '{"name":"bad","runtime":"ruby"}' }),
      400,
      'bad-manifest',
      /runtime/,
    );
    const post = (body: RequestInit['body'], headers = {}) =>
      gateway.call('/v1/functions/bad/versions', {
        method: 'POST',
        body,
        headers,
        duplex: 'half',
      } as RequestInit);
    await assertProblem(await post(undefined), 400, 'bad-bundle');
    await assertProblem(await post(new Uint8Array(2 * 1024 * 1024)), 413, 'body-too-large', /1048576/);
    const endless = new ReadableStream({
      pull: (controller) => controller.enqueue(new Uint8Array(64 * 1024).fill(1)),
    });
    await assertProblem(await post(endless), 400, 'bad-bundle', /not a readable tar/);
    assert.equal(gateway.state.functions.get('bad'), undefined);
    assert.ok(!(await readdir(gateway.bundleDir)).some((name) => name.startsWith('incoming-')));
  });

  it('take gzip whatever the type says', async () => {
    const body = new Uint8Array(gzipSync(await tarball({ 'main.py': 'app = 1' })));
    for (const type of ['application/gzip', 'application/octet-stream', 'application/json']) {
      const response = await gateway.call('/v1/functions/zipped/versions', {
        method: 'POST',
        body,
        headers: { 'content-type': type, prefer: 'wait=10' },
      });
      assert.equal((await json(response)).manifest?.runtime, 'python', type);
      assert.equal(response.status, 201);
    }
  });

  it('limit the builds that run at once', async () => {
    const release = holdBuilds();
    await deploy('busy-a', { 'index.js': '1' }, { prefer: '' });
    await deploy('busy-b', { 'index.js': '1' }, { prefer: '' });
    const third = await deploy('busy-c', { 'index.js': '1' }, { prefer: '' });
    assert.equal(third.headers.get('retry-after'), '5');
    await assertProblem(third, 429, 'overloaded');
    release();
    await eventually('both are ready', () => gateway.state.functions.resolve('busy-b') !== undefined);
  });

  it('hide the values of environment variables', async () => {
    const manifest = { name: 'secretive', runtime: 'node', env: { TOKEN: 'hunter2' } };
    const response = await deploy('secretive', { 'index.js': '', 'thaw.json': JSON.stringify(manifest) });
    const text = await response.text();
    assert.ok(text.includes('TOKEN') && !text.includes('hunter2'));
    assert.equal(gateway.node.served.get('secretive@1')?.manifest.env.TOKEN, 'hunter2');
  });

  it('stream logs as events until the reader goes', async () => {
    await deploy('talkative', { 'index.js': '' });
    gateway.node.log({ event: 'log', stream: 'stdout', line: 'hello\nworld', atMs: 1 });
    const leaving = new AbortController();
    const response = await gateway.call('/v1/functions/talkative/logs', { signal: leaving.signal });
    assert.equal(response.headers.get('content-type'), 'text/event-stream');
    const reader = response.body!.getReader();
    const { value } = await reader.read();
    const [event, data] = Buffer.from(value!).toString().split('\n');
    assert.equal(event, 'event: log');
    assert.equal(JSON.parse(data!.slice('data: '.length)).line, 'hello\nworld');
    leaving.abort();
    await assertProblem(await gateway.call('/v1/functions/nobody/logs'), 404, 'function-not-found');
  });

  it('say what is not offered yet', async () => {
    const post = (path: string) =>
      gateway.call(path, { method: 'POST', body: '{}', headers: { 'content-type': 'application/json' } });
    await assertProblem(await post('/v1/functions/first/invocations'), 501, 'not-implemented');
    await assertProblem(await gateway.call('/v1/invocations/x'), 501, 'not-implemented');
  });
});

const fromSnapshot = (body: object, headers: Record<string, string> = {}) =>
  gateway.call('/v1/functions', {
    method: 'POST',
    body: JSON.stringify(body),
    headers: { 'content-type': 'application/json', prefer: 'wait=10', ...headers },
  });

describe('functions from snapshots', () => {
  it('are versions like others, and outlive the snapshot', async () => {
    const snapshotId = await gateway.saveSandbox();
    const made = await fromSnapshot({ name: 'saved', fromSnapshot: snapshotId, port: 8000 });
    const body = await json(made);
    assert.equal(made.status, 201, JSON.stringify(body));
    assert.equal(made.headers.get('location'), '/v1/functions/saved/versions/1');
    assert.deepEqual([body.state, body.bundle, body.fromSnapshot], ['ready', null, snapshotId]);
    assert.notEqual(body.snapshotId, snapshotId);
    assert.deepEqual([body.manifest.port, body.manifest.memoryMb, body.manifest.prime], [8000, 512, ['/']]);
    await gateway.node.removeSnapshot(snapshotId);
    assert.equal((await fetch(`${gateway.url}/fn/saved/hi`)).status, 200);
    assert.equal((await fetch(`${gateway.url}/fn/saved@1/hi`)).status, 200);
    const headers = { 'content-type': 'application/json' };
    const tuned = await gateway.call('/v1/functions/saved', {
      method: 'PATCH',
      body: JSON.stringify({ warm: { min: 3, max: 4 } }),
      headers,
    });
    assert.deepEqual((await json(tuned)).pool, { warm: 3 });
    const later = await deploy('saved', { 'index.js': '' });
    assert.equal((await json(later)).version, 2);
    assert.equal((await fetch(`${gateway.url}/fn/saved@1/hi`)).status, 200);
  });

  it('answer 202 while they are made', async () => {
    const snapshotId = await gateway.saveSandbox();
    const release = holdBuilds();
    const made = await fromSnapshot(
      { name: 'slow-saved', fromSnapshot: snapshotId, port: 8000 },
      { prefer: '' },
    );
    assert.equal(made.status, 202);
    release();
    await eventually('it serves', () => gateway.state.functions.resolve('slow-saved') !== undefined);
  });

  it('are refused with the reason', async () => {
    const snapshotId = await gateway.saveSandbox();
    const good = { name: 'refused', fromSnapshot: snapshotId, port: 8000 };
    const with_ = (changes: object) => fromSnapshot({ ...good, ...changes });
    await assertProblem(await with_({ name: 'Bad' }), 400, 'bad-name');
    await assertProblem(await with_({ fromSnapshot: 'none' }), 404, 'template-not-found');
    await assertProblem(await with_({ port: undefined }), 400, 'bad-request', /port/);
    await assertProblem(await with_({ port: 70_000 }), 400, 'bad-request', /port/);
    await assertProblem(await with_({ port: 49_983 }), 400, 'bad-request', /Thaw's own/);
    await assertProblem(await with_({ prime: [] }), 400, 'bad-request', /prime/);
    await assertProblem(await with_({ memoryMb: 256 }), 400, 'bad-request', /memoryMb: the snapshot has 512/);
    await assertProblem(await with_({ env: { A: 'b' } }), 400, 'bad-request', /command/);
    await assertProblem(await with_({ warm: { min: 3, max: 2 } }), 400, 'bad-request', /warm\.min/);
    await assertProblem(await with_({ runtime: 'node' }), 400, 'bad-request');
    await assertProblem(
      await fetch(`${gateway.url}/v1/functions`, { method: 'POST' }),
      401,
      'unauthenticated',
    );
    assert.equal(gateway.state.functions.get('refused'), undefined);
    await assertProblem(await with_({ port: 8001 }), 422, 'start-failed', /port 8001/);
    assert.equal(gateway.state.functions.get('refused')?.versions[0]?.state, 'failed');
  });
});

describe('a restarted gateway', () => {
  it('serves again what was deployed, reports progress, and marks what an interruption left', async () => {
    await deploy('durable', { 'index.js': 'a' });
    await deploy('durable', { 'index.js': 'b' });
    const { manifest } = gateway.state.functions.resolve('durable')!;
    const left = { name: 'halted', manifest, bundleSha256: 'c'.repeat(64), bundleSizeBytes: 1 };
    await gateway.state.functions.beginVersion(left, 'an earlier run', 300);
    await gateway.restart();
    const before = await gateway.app.gateway.readiness();
    assert.equal(before.ready, false);
    const early = await fetch(`${gateway.url}/fn/durable/`);
    assert.equal(early.headers.get('retry-after'), '2');
    await assertProblem(early, 503, 'no-capacity', /made ready/);
    const steps: string[] = [];
    await gateway.app.gateway.resume((_done, _total, what) => steps.push(what));
    assert.ok(steps.includes('durable@2'));
    assert.ok(steps.indexOf('durable@2') < steps.indexOf('durable@1'), 'what serves comes first');
    assert.deepEqual(await gateway.app.gateway.readiness(), { ready: true, notes: [] });
    assert.equal((await fetch(`${gateway.url}/fn/durable/`)).status, 200);
    assert.equal((await fetch(`${gateway.url}/fn/durable@1/`)).status, 200);
    assert.equal(
      (await fetch(`${gateway.url}/fn/saved@1/`)).status,
      200,
      'made from a snapshot that is gone',
    );
    assert.equal(gateway.node.served.get('durable@1')?.manifest.warm.min, 0);
    await eventually(
      'the interrupted build is marked',
      () => gateway.state.functions.get('halted')?.versions[0]?.state === 'failed',
    );
  });

  it('is not kept from starting by one function that cannot be served', async () => {
    gateway.node.failures.set('serve', new ThawError('restore-failed', 'snapshot is broken'));
    await gateway.restart();
    await gateway.app.gateway.resume();
    gateway.node.failures.clear();
    const { ready, notes } = await gateway.app.gateway.readiness();
    assert.equal(ready, true);
    assert.ok(notes.some((note) => note.includes('durable@2 cannot be served: snapshot is broken')));
  });

  it('refuses changes but keeps serving while redis is away', async () => {
    await gateway.app.gateway.resume();
    await gateway.redis.kill();
    await eventually('the loss is seen', () => !gateway.state.connected);
    assert.equal((await fetch(`${gateway.url}/fn/durable/`)).status, 200);
    const refused = await deploy('durable', { 'index.js': 'late' });
    assert.equal(refused.headers.get('retry-after'), '1');
    await assertProblem(refused, 503, 'state-unavailable');
    assert.ok((await gateway.app.gateway.readiness()).notes[0]?.includes('redis'));
    await gateway.redis.start();
    await eventually('it is back', () => gateway.state.connected);
    assert.equal((await deploy('durable', { 'index.js': 'later' })).status, 201);
  });
});
