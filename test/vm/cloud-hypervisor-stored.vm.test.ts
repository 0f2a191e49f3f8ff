// Snapshots that come from a store, on Cloud Hypervisor: its flat disks, and page files that a pager serves, by way of
// two Thaws on one directory store. `npm run test:metal` runs it where the host has no KVM.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { canMountFuse } from '../../pool/pagefs/fuse-mount.ts';
import { type RedisForTests, startRedis } from '../../services/gateway/state/redis-for-tests.ts';
import { freePort } from '../edge/run-client.ts';
import { whyNotHere } from './cloud-hypervisor-here.ts';
import { eventually, newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

/** A trial boot and a template, in a machine that is emulated. */
const startTimeoutMs = 480_000;
const callTimeoutMs = 180_000;
const fuse = await canMountFuse();
const reason = (await whyNotHere()) ?? (fuse.ok ? undefined : fuse.reason);

describe('snapshots in a store, on Cloud Hypervisor', reason === undefined ? {} : { skip: reason }, () => {
  let redis: RedisForTests;
  let storeDir: string;
  let first: ThawProcess;
  let second: ThawProcess;
  const dataDirs: string[] = [];
  let snapshotId: string;

  const create = (thaw: ThawProcess, template: string) =>
    Sandbox.create(template, {
      apiKey: thaw.apiKey,
      apiUrl: thaw.url,
      sandboxUrl: thaw.url,
      requestTimeoutMs: callTimeoutMs,
      timeoutMs: 600_000,
    });
  const outputOf = async (sandbox: Sandbox, command: string) =>
    (await sandbox.commands.run(command, { timeoutMs: callTimeoutMs })).stdout.trim();
  const isStored = (thaw: ThawProcess, id: string) =>
    eventually(
      `${id} is in the store`,
      async () => {
        const facts = (await (await thaw.call(`/v1/snapshots/${id}`)).json()) as { stored: string };
        return facts.stored === 'yes';
      },
      callTimeoutMs,
    );
  const start = async () => {
    const dataDir = await newDataDir();
    dataDirs.push(dataDir);
    const env = {
      THAW_HYPERVISOR: 'cloud-hypervisor',
      THAW_STORE: `file://${storeDir}`,
      THAW_CLUSTER_KEY: '5a'.repeat(32),
      THAW_REDIS_URL: redis.url!,
      THAW_BASE_WARM: '0',
    };
    return startThaw(dataDir, [], env, startTimeoutMs);
  };

  before(async () => {
    redis = await startRedis(await freePort());
    storeDir = await newDataDir();
    dataDirs.push(storeDir);
    first = await start();
  });
  after(async () => {
    for (const thaw of [first, second]) await thaw?.end();
    await redis?.stop();
    for (const dir of dataDirs) await removeDir(dir);
  });

  it('publishes a snapshot of a running sandbox', async () => {
    const sandbox = await create(first, 'base');
    await outputOf(sandbox, 'echo in-memory > /dev/shm/note; echo on-disk > note');
    ({ snapshotId } = await sandbox.createSnapshot());
    await isStored(first, snapshotId);
    await sandbox.kill();
  });

  it('restores it on a node that has nothing of it, from pages that a pager serves', async () => {
    assert.equal(await first.end(), 0, first.said());
    second = await start();
    assert.match(await readFile(join(second.dataDir, 'thaw.log'), 'utf8'), /a snapshot came from the store/);
    const sandbox = await create(second, snapshotId);
    assert.equal(await outputOf(sandbox, 'cat /dev/shm/note note'), 'in-memory\non-disk');
    const metrics = await (await fetch(`${second.adminUrl}/metrics`)).text();
    assert.match(metrics, /thaw_restore_stage_seconds_count\{stage="total",source="remote"\} [1-9]/);
    assert.match(metrics, /thaw_pagefs_read_seconds_count\{source="store"\} [1-9]/);
    await sandbox.kill();
  });

  it('saves a clone whose pages came from there, and branches from it', async () => {
    const sandbox = await create(second, snapshotId);
    await outputOf(sandbox, 'echo branch | tee /dev/shm/branch >> note');
    const { snapshotId: branchId } = await sandbox.createSnapshot();
    const branch = await create(second, branchId);
    assert.equal(await outputOf(branch, 'cat /dev/shm/branch note'), 'branch\non-disk\nbranch');
    await isStored(second, branchId);
    await Promise.all([sandbox.kill(), branch.kill()]);
  });
});
