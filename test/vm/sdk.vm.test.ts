// Holds both SDKs to their promises in real VMs, against a Thaw as a user starts it: their tests of the wire, and what the
// snapshots page says. Invariant: of what is tested elsewhere nothing is repeated here; here it is a guest that answers.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { ConflictError, NotFoundError, Sandbox, Snapshots } from '../../sdk/typescript/index.ts';
import { newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

const projectDir = join(import.meta.dirname, '../..');
const pythonDir = join(projectDir, 'sdk/python');

let thaw: ThawProcess;
let dataDir: string;
let server: { apiUrl: string; apiKey: string };
before(async () => {
  dataDir = await newDataDir();
  thaw = await startThaw(dataDir);
  server = { apiUrl: thaw.url, apiKey: thaw.apiKey };
});
after(async () => {
  await thaw?.end();
  await removeDir(dataDir);
});

async function run(command: string, args: string[], cwd: string): Promise<void> {
  const env = {
    ...process.env,
    THAW_TEST_URL: thaw.url,
    THAW_TEST_API_KEY: thaw.apiKey,
    PYTHONDONTWRITEBYTECODE: '1',
    // A test runner within a test runner reports to it instead of printing.
    NODE_TEST_CONTEXT: undefined,
  };
  const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  const exitCode = await new Promise<number | null>((resolve) => child.once('close', resolve));
  assert.equal(exitCode, 0, output);
  assert.doesNotMatch(output, /skipped=|^ℹ skipped [1-9]/m);
}

const count =
  'nohup sh -c "n=0; while :; do n=\\$((n+1)); echo \\$n > counter; sleep 0.5; done" > /dev/null 2>&1 &';

async function counter(sandbox: Sandbox): Promise<number> {
  const { stdout } = await sandbox.commands.run('until test -s counter; do sleep 0.1; done; cat counter');
  return Number(stdout);
}

describe('the TypeScript SDK in real VMs', () => {
  it('keeps its promises of the wire', () =>
    run(process.execPath, ['--test', 'test/sdk/typescript.test.ts'], projectDir));

  it('takes snapshots that go on in new sandboxes after the source was killed', async () => {
    const sbx = await Sandbox.create(server);
    await sbx.commands.run(count);
    await sbx.files.write('unsynced', 'kept');
    const counted = await counter(sbx);
    const snapshot = await sbx.createSnapshot();
    assert.ok((await counter(sbx)) > counted, 'the source goes on');
    assert.deepEqual(await sbx.listSnapshots(), [snapshot]);
    await sbx.kill();
    const snapshots = new Snapshots(server);
    const details = await snapshots.get(snapshot.snapshotId);
    assert.equal(details.sandboxId, sbx.sandboxId);
    assert.ok(details.pauseMs.total! > 0 && details.dirtyPages! > 0 && details.uniqueBytes! > 0);
    const options = { ...server, snapshotId: snapshot.snapshotId };
    const [first, second] = await Promise.all([Sandbox.create(options), Sandbox.create(options)]);
    assert.equal(new Set([sbx.sandboxId, first.sandboxId, second.sandboxId]).size, 3);
    for (const clone of [first, second]) {
      assert.equal(await clone.files.read('unsynced'), 'kept');
      const wentOn = await counter(clone);
      assert.ok(wentOn > counted);
      assert.ok((await counter(clone)) > wentOn);
    }
    await first.files.write('unsynced', 'mine');
    assert.equal(await second.files.read('unsynced'), 'kept');
    for (const clone of [first, second]) assert.equal(await clone.kill(), true);
    assert.equal(await snapshots.delete(snapshot.snapshotId), true);
    assert.equal(await snapshots.delete(snapshot.snapshotId), false);
    await assert.rejects(Sandbox.create(options), NotFoundError);
  });

  it('pauses and resumes, with processes and id', async () => {
    await using sbx = await Sandbox.create(server);
    await sbx.commands.run(count);
    const counted = await counter(sbx);
    const sleeping = await sbx.commands.run('sleep 100', { background: true });
    assert.equal(await sbx.pause(), true);
    await assert.rejects(sleeping.wait(), NotFoundError);
    assert.equal(await sbx.isRunning(), false);
    assert.equal(await sbx.pause(), false);
    assert.equal((await sbx.getInfo()).state, 'paused');
    await assert.rejects(sbx.createSnapshot(), ConflictError);
    await sbx.resume({ timeoutMs: 120_000 });
    assert.equal(await sbx.isRunning(), true);
    assert.ok((await counter(sbx)) > counted);
    assert.ok((await sbx.commands.list()).some(({ pid }) => pid === sleeping.pid));
  });

  it('forks, and measures what a sandbox uses', async () => {
    await using sbx = await Sandbox.create(server);
    await sbx.files.write('kept', 'yes');
    const forks = await sbx.fork({ count: 2 });
    assert.equal(forks.length, 2);
    for (const fork of forks) {
      assert.equal(await fork.files.read('kept'), 'yes');
      await fork.kill();
    }
    const sample = (await sbx.getMetrics()).at(-1)!;
    assert.ok(sample.memTotalBytes > 100_000_000 && sample.cpuCount > 0);
  });
});

describe('the Python SDK in real VMs', () => {
  it('keeps its promises of the wire', () =>
    run('python3', ['-m', 'unittest', 'tests.sync.test_wire'], pythonDir));

  for (const half of ['sync', 'aio'])
    it(`takes snapshots, pauses, forks: ${half}`, () =>
      run('python3', ['-m', 'unittest', `tests.${half}.test_snapshots`], pythonDir));
});
