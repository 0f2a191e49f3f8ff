// A sandbox in which a server runs becomes a public endpoint with warm VMs; it outlives the sandbox, the snapshot and Thaw.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { eventually, newDataDir, removeDir, runCli, startThaw, type ThawProcess } from './thaw-process.ts';

describe('a sandbox as an endpoint', () => {
  let thaw: ThawProcess;
  let dataDir: string;
  let snapshotId: string;
  const connection = () => ({ apiKey: thaw.apiKey, apiUrl: thaw.url, sandboxUrl: thaw.url });
  const answerOf = async (path: string) => {
    const response = await fetch(`${thaw.url}${path}`);
    return {
      status: response.status,
      text: await response.text(),
      timing: response.headers.get('server-timing'),
    };
  };
  const deployed = (args: string[]) => runCli(['deploy', '--json', ...args], { THAW_DATA_DIR: dataDir });
  const sites = () => [`--from-snapshot=${snapshotId}`, '--name', 'site', '--port', '8000'];

  before(async () => {
    dataDir = await newDataDir();
    thaw = await startThaw(dataDir, [], { THAW_BASE_WARM: '0' });
    const sandbox = await Sandbox.create('base', {
      ...{ ...connection(), timeoutMs: 600_000, envs: { GREETING: 'from the sandbox' } },
    });
    await sandbox.files.write('/home/user/site/index.html', 'served from memory and disk');
    const serve = 'cd /home/user/site && exec python3 -m http.server 8000 --bind 0.0.0.0';
    await sandbox.commands.run(serve, { background: true, timeoutMs: 0 });
    await eventually(
      'the server listens',
      async () =>
        (await sandbox.commands.run('ss -ltn', { timeoutMs: 60_000 })).stdout.includes(':8000') || undefined,
    );
    ({ snapshotId } = await sandbox.createSnapshot());
    await sandbox.kill();
  });
  after(async () => {
    await thaw?.end();
    await removeDir(dataDir);
  });

  it('says which port nothing listens on, and leaves nothing behind', async () => {
    const { exitCode, stdout, stderr } = await deployed([...sites().slice(0, 3), '--port', '8001']);
    assert.equal(exitCode, 1);
    assert.match(stdout + stderr, /start-failed.*port 8001.*0\.0\.0\.0:8001/s);
    const { snapshots } = (await (await thaw.call('/v1/snapshots')).json()) as {
      snapshots: { kind: string }[];
    };
    assert.deepEqual(snapshots.map(({ kind }) => kind).sort(), ['sandbox', 'template']);
  });

  it('answers from a warm VM', async (t) => {
    const { exitCode, stdout, stderr } = await deployed(sites());
    assert.equal(exitCode, 0, stderr);
    const version = JSON.parse(stdout) as { version: number; snapshotId: string; elapsedMs: number };
    // The first one failed, on its port.
    assert.equal(version.version, 2);
    assert.notEqual(version.snapshotId, snapshotId);
    t.diagnostic(`made in ${version.elapsedMs} ms`);
    await eventually('a warm VM', async () => {
      const view = (await (await thaw.call('/v1/functions/site')).json()) as { pool?: { warm?: number } };
      return (view.pool?.warm ?? 0) > 0;
    });
    const { status, text, timing } = await answerOf('/fn/site/');
    assert.deepEqual([status, text], [200, 'served from memory and disk']);
    assert.match(timing!, /tier;desc="?warm/);
    t.diagnostic(`${timing}`);
  });

  it('answers when the snapshot is removed, and with fresh VMs', async () => {
    assert.equal(await Sandbox.deleteSnapshot(snapshotId, connection()), true);
    const headers = { 'content-type': 'application/json' };
    const body = JSON.stringify({ recycle: 'fresh', warm: { min: 0, max: 2 } });
    assert.equal((await thaw.call('/v1/functions/site', { method: 'PATCH', headers, body })).status, 200);
    for (let round = 0; round < 3; round++)
      assert.equal((await answerOf('/fn/site/')).text, 'served from memory and disk');
  });

  it('starts a server by its command, with the environment of the sandbox', async () => {
    const command =
      'mkdir -p web && echo "$GREETING" > web/index.html && cd web && exec python3 -m http.server $PORT';
    const sandbox = await Sandbox.create('base', {
      ...{ ...connection(), timeoutMs: 600_000, envs: { GREETING: 'from the sandbox' } },
    });
    const saved = await sandbox.createSnapshot();
    await sandbox.kill();
    const args = [
      '--from-snapshot',
      saved.snapshotId,
      '--name',
      'commanded',
      '--port',
      '9000',
      '--command',
      command,
    ];
    const { exitCode, stderr } = await deployed(args);
    assert.equal(exitCode, 0, stderr);
    assert.equal((await answerOf('/fn/commanded/')).text, 'from the sandbox\n');
  });

  it('answers after a restart of everything', async () => {
    assert.equal(await thaw.end('SIGTERM'), 0, thaw.said());
    thaw = await startThaw(dataDir, [], { THAW_BASE_WARM: '0' });
    assert.equal((await answerOf('/fn/site/')).text, 'served from memory and disk');
    assert.equal((await answerOf('/fn/site@2/')).status, 200);
    assert.equal((await thaw.call('/v1/functions/site', { method: 'DELETE' })).status, 204);
    assert.equal((await answerOf('/fn/site/')).status, 404);
  });
});
