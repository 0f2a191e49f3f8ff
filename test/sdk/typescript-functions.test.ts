// Holds the TypeScript SDK's functions to a real gateway; what a function answers is the simulated node's echo.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  BuildError,
  DeadlineExceededError,
  Functions,
  InvalidRequestError,
  NotFoundError,
} from '../../sdk/typescript/index.ts';
import { type GatewayForTests, startGateway, tarball } from '../../services/gateway/gateway-for-tests.ts';
import type { Echo } from '../../services/gateway/simulated-node-client.ts';
import { ThawError } from '../../shared/errors.ts';

let gateway: GatewayForTests;
let functions: Functions;
before(async () => {
  gateway = await startGateway();
  functions = new Functions({ apiUrl: gateway.url, apiKey: gateway.apiKey });
});
after(() => gateway.close());

const archive = async () => new Uint8Array(await tarball({ 'index.js': 'export default { fetch() {} }' }));

describe('functions of the TypeScript SDK', () => {
  it('are deployed from a directory, invoked, listed and deleted', async () => {
    const directory = new URL('../../examples/hello', import.meta.url).pathname;
    const version = await functions.deploy({ directory });
    assert.deepEqual([version.name, version.version, version.state], ['hello', 1, 'ready']);
    const response = await functions.invoke('hello', { path: '/a?b=c', method: 'POST', body: 'text' });
    const echo = (await response.json()) as Echo;
    assert.deepEqual([echo.method, echo.url, echo.bodyBytes], ['POST', '/a?b=c', 4]);
    const [listed] = await functions.list();
    assert.deepEqual([listed?.name, listed?.currentVersion, listed?.url], ['hello', 1, '/fn/hello/']);
    assert.equal((await functions.get('hello')).name, 'hello');
    assert.equal(await functions.delete('hello'), true);
    assert.equal(await functions.delete('hello'), false);
    await assert.rejects(functions.invoke('hello'), NotFoundError);
    await assert.rejects(functions.get('hello'), NotFoundError);
  });

  it('pass any status on, and keep the key to themselves', async () => {
    await gateway.deployEcho('keyed', { auth: 'key' });
    const response = await functions.invoke('keyed', { path: '/answer?status=500' });
    assert.equal(response.status, 500);
    const echo = (await (await functions.invoke('keyed', { version: 1 })).json()) as Echo;
    assert.equal(echo.headers['x-api-key'], undefined);
  });

  it('stream an answer, piece by piece', async () => {
    await gateway.deployEcho('streamer');
    const response = await functions.invoke('streamer', { path: '/flood?bytes=3000000' });
    let sizeBytes = 0;
    for await (const chunk of response.body!) sizeBytes += chunk.length;
    assert.equal(sizeBytes, 3_000_000);
    await assert.rejects(
      functions.invoke('streamer', { path: '/never', requestTimeoutMs: 100 }),
      DeadlineExceededError,
    );
  });

  it('say why a build failed, and wait for a long one', async () => {
    gateway.node.failures.set('deploy', new ThawError('build-failed', 'npm: no such package'));
    await assert.rejects(functions.deploy({ name: 'broken', archive: await archive() }), (error) => {
      assert.ok(error instanceof BuildError);
      assert.match(error.message, /no such package/);
      return true;
    });
    gateway.node.failures.clear();
    const gate = Promise.withResolvers<void>();
    gateway.node.buildGate = gate.promise;
    const slow = { name: 'slow', archive: await archive(), timeoutMs: 300 };
    await assert.rejects(functions.deploy(slow), DeadlineExceededError);
    gate.resolve();
  });

  it('are made from a snapshot of a sandbox', async () => {
    const snapshotId = await gateway.saveSandbox();
    const version = await functions.fromSnapshot({ name: 'saved', snapshotId, port: 8000, concurrency: 4 });
    assert.deepEqual([version.name, version.version, version.state], ['saved', 1, 'ready']);
    assert.equal((await functions.invoke('saved', { path: '/answer?status=204' })).status, 204);
    const shut = functions.fromSnapshot({ name: 'shut', snapshotId, port: 8001 });
    await assert.rejects(shut, (error) => error instanceof BuildError && /port 8001/.test(error.message));
    const lost = functions.fromSnapshot({ name: 'lost', snapshotId: 'nothing', port: 8000 });
    await assert.rejects(lost, NotFoundError);
  });

  it('need an archive or a directory, not both', async () => {
    const both = { name: 'x', archive: await archive(), directory: '.' };
    await assert.rejects(functions.deploy(both), InvalidRequestError);
    await assert.rejects(functions.deploy({ name: 'x' }), InvalidRequestError);
    await assert.rejects(
      functions.deploy({ name: 'Not a name', archive: await archive() }),
      InvalidRequestError,
    );
  });
});
