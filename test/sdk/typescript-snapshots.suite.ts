// Holds the TypeScript SDK to what the snapshots page promises, in real VMs: those of the server that THAW_TEST_URL and
// THAW_TEST_API_KEY name. Refuses to own that server (test/vm/sdk.vm.test.ts starts it).
import assert from 'node:assert/strict';
import { after, afterEach, beforeEach, describe, it } from 'node:test';
import { ConflictError, NotFoundError, Sandbox, Snapshots } from '../../sdk/typescript/index.ts';

const { THAW_TEST_URL: apiUrl, THAW_TEST_API_KEY: apiKey } = process.env;
const server = { apiUrl, apiKey };
const count =
  'nohup sh -c "n=0; while :; do n=\\$((n+1)); echo \\$n > counter; sleep 0.5; done" > /dev/null 2>&1 &';

/** Waits in the sandbox until it has counted further than `above`. */
async function counterOf(sandbox: Sandbox, above = 0): Promise<number> {
  const isAbove = `n=$(cat counter 2>/dev/null); test "\${n:-0}" -gt ${above}`;
  return Number((await sandbox.commands.run(`until ${isAbove}; do sleep 0.1; done; echo $n`)).stdout);
}

describe('snapshots', {
  skip: apiKey === undefined && 'THAW_TEST_URL and THAW_TEST_API_KEY name no server',
}, () => {
  let sbx: Sandbox;
  const taken: string[] = [];
  beforeEach(async () => {
    sbx = await Sandbox.create(server);
  });
  afterEach(() => sbx.kill());
  after(async () => {
    const snapshots = new Snapshots(server);
    for (const snapshotId of taken) await snapshots.delete(snapshotId);
  });

  it('go on in new sandboxes after the source was killed', async () => {
    await sbx.commands.run(count);
    await sbx.files.write('unsynced', 'kept');
    const counted = await counterOf(sbx);
    const snapshot = await sbx.createSnapshot({ name: 'counting-in-typescript' });
    taken.push(snapshot.snapshotId);
    await counterOf(sbx, counted);
    assert.deepEqual(await sbx.listSnapshots(), [snapshot]);
    await sbx.kill();
    const { snapshotId } = snapshot;
    const clones = await Promise.all([1, 2].map(() => Sandbox.create({ snapshotId, ...server })));
    assert.equal(new Set([sbx, ...clones].map(({ sandboxId }) => sandboxId)).size, 3);
    for (const clone of clones) {
      assert.equal(await clone.files.read('unsynced'), 'kept');
      await counterOf(clone, await counterOf(clone, counted));
    }
    await clones[0]!.files.write('unsynced', 'mine');
    assert.equal(await clones[1]!.files.read('unsynced'), 'kept');
    for (const clone of clones) assert.equal(await clone.kill(), true);
    const snapshots = new Snapshots(server);
    assert.equal(await snapshots.delete(snapshotId), true);
    assert.equal(await snapshots.delete(snapshotId), false);
    await assert.rejects(Sandbox.create({ snapshotId, ...server }), NotFoundError);
  });

  it('are what a pause keeps until the resume', async () => {
    await sbx.commands.run(count);
    const counted = await counterOf(sbx);
    const sleeping = await sbx.commands.run('sleep 100', { background: true });
    const disconnected = assert.rejects(sleeping.wait(), NotFoundError);
    assert.equal(await sbx.pause(), true);
    await disconnected;
    assert.equal(await sbx.isRunning(), false);
    assert.equal(await sbx.pause(), false);
    assert.equal((await sbx.getInfo()).state, 'paused');
    await assert.rejects(sbx.createSnapshot(), ConflictError);
    await sbx.resume({ timeoutMs: 120_000 });
    assert.equal(await sbx.isRunning(), true);
    await counterOf(sbx, counted);
    assert.ok((await sbx.commands.list()).some(({ pid }) => pid === sleeping.pid));
  });

  it('are behind a fork', async () => {
    await sbx.files.write('kept', 'yes');
    const forks = await sbx.fork({ count: 2 });
    assert.equal(forks.length, 2);
    for (const fork of forks) {
      assert.equal(await fork.files.read('kept'), 'yes');
      await fork.kill();
    }
    assert.equal(await sbx.isRunning(), true);
  });
});
