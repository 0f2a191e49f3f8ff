// What a store is for: everything that one node saved is had again on another one, of which nothing is left but the
// store; in real VMs, from a real S3 server that is some way off and now and then does not answer.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { NamespaceSlots } from '../../pool/host/network-slots.ts';
import { pathsOf } from '../../pool/host/paths.ts';
import { reclaim } from '../../pool/host/reclaim.ts';
import { canMountFuse } from '../../pool/pagefs/fuse-mount.ts';
import { type FaultProxy, startFaultProxy } from '../../pool/store/fault-proxy-for-tests.ts';
import {
  type S3ForTests,
  s3Missing,
  startS3,
  testCredentials,
} from '../../pool/store/s3-server-for-tests.ts';
import { endOldPager } from '../../services/cli/node-store.ts';
import { type RedisForTests, startRedis } from '../../services/gateway/state/redis-for-tests.ts';
import { silentLog } from '../../shared/log.ts';
import { freePort } from '../edge/run-client.ts';
import { packTar } from './pack-tar.ts';
import { storedFailureRows } from './stored-failure-rows.ts';
import { eventually, newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

const fuse = await canMountFuse();
const skip = (await s3Missing()) ?? (fuse.ok ? false : fuse.reason);
const firstByteDelayMs = 20;

interface Facts {
  snapshotId: string;
  here: boolean;
  stored: string;
  uniqueBytes: number;
  storedBytes: number;
  names: string[];
}

const counter = `
import time
n = 0
while True:
    n += 1
    open('/dev/shm/counter', 'w').write(str(n))
    time.sleep(0.1)
`;

describe('snapshots in a store', { skip }, () => {
  let s3: S3ForTests;
  let proxy: FaultProxy;
  let redis: RedisForTests;
  let first: ThawProcess;
  let second: ThawProcess;
  const dataDirs: string[] = [];
  let env: NodeJS.ProcessEnv;

  const connection = (thaw: ThawProcess) => ({
    apiKey: thaw.apiKey,
    apiUrl: thaw.url,
    sandboxUrl: thaw.url,
  });
  const create = (thaw: ThawProcess, template: string) =>
    Sandbox.create(template, { ...connection(thaw), timeoutMs: 600_000 });
  const outputOf = async (sandbox: Sandbox, command: string) =>
    (await sandbox.commands.run(command, { timeoutMs: 60_000 })).stdout.trim();
  const countOf = async (sandbox: Sandbox) => Number(await outputOf(sandbox, 'cat /dev/shm/counter'));
  const factsOf = async (thaw: ThawProcess, id: string) =>
    (await (await thaw.call(`/v1/snapshots/${id}`)).json()) as Facts;
  const stored = (thaw: ThawProcess, id: string) =>
    eventually(
      `${id} is in the store`,
      async () => (await factsOf(thaw, id)).stored === 'yes' && factsOf(thaw, id),
      120_000,
    );
  const logOf = (thaw: ThawProcess) => readFile(join(thaw.dataDir, 'thaw.log'), 'utf8');

  async function start(
    more: NodeJS.ProcessEnv = {},
    prepare: (dataDir: string) => Promise<unknown> = async () => {},
  ): Promise<ThawProcess> {
    const dataDir = await newDataDir();
    dataDirs.push(dataDir);
    await prepare(dataDir);
    return await startThaw(dataDir, [], { ...env, ...more });
  }

  before(async () => {
    s3 = await startS3();
    proxy = await startFaultProxy(s3.port, { firstByteDelayMs });
    redis = await startRedis(await freePort());
    env = {
      THAW_STORE: `s3://${s3.bucket}/thaw`,
      THAW_S3_ENDPOINT: proxy.endpoint,
      THAW_CLUSTER_KEY: '5a'.repeat(32),
      THAW_REDIS_URL: redis.url!,
      THAW_BASE_WARM: '0',
      AWS_ACCESS_KEY_ID: testCredentials.accessKeyId,
      AWS_SECRET_ACCESS_KEY: testCredentials.secretAccessKey,
    };
    first = await start();
  });
  after(async () => {
    for (const thaw of [first, second]) await thaw?.end();
    await redis?.stop();
    await proxy?.close();
    await s3?.stop();
    for (const dir of dataDirs) {
      // What the node that was killed left: nobody starts there again.
      await endOldPager(pathsOf(dir));
      await reclaim({ paths: pathsOf(dir), log: silentLog });
      await removeNetworks(pathsOf(dir).networkDir);
      await removeDir(dir);
    }
  });

  let snapshotId: string;
  let siblingId: string;

  it('a snapshot is published after it was taken, and a sibling adds little', async (t) => {
    const sandbox = await create(first, 'base');
    await sandbox.files.write('/home/user/counter.py', counter);
    await sandbox.commands.run('python3 /home/user/counter.py', { background: true, timeoutMs: 0 });
    await eventually('the counter runs', async () => (await countOf(sandbox).catch(() => 0)) > 3);
    await outputOf(sandbox, 'echo in-memory > /dev/shm/note; echo on-disk > note; sync');
    ({ snapshotId } = await sandbox.createSnapshot({ name: 'work' }));
    await stored(first, snapshotId);
    await outputOf(sandbox, 'echo more >> note');
    ({ snapshotId: siblingId } = await sandbox.createSnapshot());
    const { storedBytes, uniqueBytes } = await stored(first, siblingId);
    t.diagnostic(`the sibling needs ${storedBytes} bytes in the store`);
    assert.ok(storedBytes > 0 && uniqueBytes > 0);
    await sandbox.kill();
  });

  it('a function version is published, too', async () => {
    const bundle = await packTar({ 'index.mjs': `export default { fetch: () => new Response('far') };` });
    const answer = await first.call('/v1/functions/far/versions', {
      method: 'POST',
      headers: { 'content-type': 'application/x-tar', prefer: 'wait=120' },
      body: bundle,
    });
    assert.equal(answer.status, 201, await answer.clone().text());
    const { snapshotId: version } = (await answer.json()) as { snapshotId: string };
    await stored(first, version);
  });

  it('the first node is lost with all it had; the second one’s base template comes from the store', async () => {
    await first.end('SIGKILL');
    second = await start();
    assert.match(await logOf(second), /a snapshot came from the store/);
    const sandbox = await create(second, 'base');
    assert.equal(await outputOf(sandbox, 'echo $((6 * 7))'), '42');
    await sandbox.kill();
  });

  it('lists what is only in the store, and restores it by name: processes, memory, disk', async () => {
    assert.equal((await factsOf(second, 'work')).here, false);
    const sandbox = await create(second, 'work');
    const count = await countOf(sandbox);
    await eventually('the counter goes on', async () => (await countOf(sandbox)) > count);
    assert.equal(await outputOf(sandbox, 'cat /dev/shm/note note'), 'in-memory\non-disk');
    const metrics = await (await fetch(`${second.adminUrl}/metrics`)).text();
    assert.match(metrics, /thaw_restore_stage_seconds_count\{stage="total",source="remote"\} [1-9]/);
    assert.match(metrics, /thaw_pagefs_read_seconds_count\{source="store"\} [1-9]/);
    assert.equal((await factsOf(second, 'work')).here, true);
    await sandbox.kill();
  });

  it('a clone whose pages came from the store is snapshotted, and branches', async () => {
    const sandbox = await create(second, siblingId);
    await outputOf(sandbox, 'echo branch > /dev/shm/branch');
    const { snapshotId: branchId } = await sandbox.createSnapshot();
    const branch = await create(second, branchId);
    assert.equal(await outputOf(branch, 'cat /dev/shm/branch note'), 'branch\non-disk\nmore');
    await stored(second, branchId);
    await Promise.all([sandbox.kill(), branch.kill()]);
  });

  it('a function that the first node deployed answers on the second', async () => {
    const answer = await second.call('/fn/far/');
    assert.equal(await answer.text(), 'far');
    assert.equal(answer.status, 200);
    // Every node that starts from now on would keep a VM of it warm.
    const removed = await second.call('/v1/functions/far', { method: 'DELETE' });
    assert.equal(removed.status, 204);
  });

  it('when all has come, the next clone maps a plain file', async () => {
    await eventually('the page file is whole', async () => {
      const record = await readFile(join(second.dataDir, 'snapshots', snapshotId, 'snapshot.json'), 'utf8');
      return (JSON.parse(record) as { form: string }).form === 'whole';
    });
    const sandbox = await create(second, snapshotId);
    assert.equal(await outputOf(sandbox, 'cat note'), 'on-disk');
    await sandbox.kill();
  });

  it('row 5: a store that does not answer is a typed error, soon, and leaves no VM', async () => {
    // Known to the store, and not to this node.
    const other = await create(second, 'base');
    const { snapshotId: gone } = await other.createSnapshot();
    await stored(second, gone);
    await other.kill();
    const third = await start();
    proxy.set({ refuse: true });
    try {
      const startMs = performance.now();
      const answer = await third.call('/v2/sandboxes', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ templateID: gone }),
      });
      assert.equal(answer.status, 503, await answer.clone().text());
      assert.ok(performance.now() - startMs < 30_000);
      const warm = await create(third, 'base').catch(() => undefined);
      await warm?.kill();
    } finally {
      proxy.set({ refuse: false });
      await third.end();
    }
    assert.deepEqual(await third.vmmPids(), []);
  });

  it('a snapshot that is removed is gone here and in the store', async () => {
    assert.equal((await second.call(`/v1/snapshots/${siblingId}`, { method: 'DELETE' })).status, 204);
    assert.equal((await second.call(`/v1/snapshots/${siblingId}`)).status, 404);
    assert.equal((await second.call(`/v1/snapshots/${siblingId}`, { method: 'DELETE' })).status, 404);
  });

  storedFailureRows({
    maker: () => second,
    start,
    create,
    stored,
    proxy: () => proxy,
    storeDir: () => join(s3.objectsDir, 'thaw'),
  });
});

/** A start on the same directory would do it. */
async function removeNetworks(recordsDir: string): Promise<void> {
  const records = await readdir(recordsDir).catch(() => []);
  if (records.length === 0) return;
  const slots = new NamespaceSlots({ recordsDir, log: silentLog, kind: 'user', ready: 0, restMs: 0 });
  slots.giveBack(await slots.take());
  await slots.close();
}
