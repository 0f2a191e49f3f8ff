// The main job as a user does it, on Cloud Hypervisor: `thaw up`, hello deployed, called; a sandbox with the unmodified
// E2B client, paused and resumed; what is left afterwards. `npm run test:metal` runs it where the host has no KVM.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import { Sandbox } from 'e2b';
import { whyNotHere } from './cloud-hypervisor-here.ts';
import { newDataDir, removeDir, runCli, startThaw, type ThawProcess } from './thaw-process.ts';

const run = promisify(execFile);
const exampleDir = join(import.meta.dirname, '../../examples/hello');
/** A trial boot, a template and a function, in a machine that is emulated. */
const startTimeoutMs = 480_000;
const reason = await whyNotHere();

describe('the main job on Cloud Hypervisor', reason === undefined ? {} : { skip: reason }, () => {
  let thaw: ThawProcess;
  let dataDir: string;
  const start = (hypervisor: string) =>
    startThaw(dataDir, ['--deploy', exampleDir], { THAW_HYPERVISOR: hypervisor }, startTimeoutMs);

  before(async () => {
    dataDir = await newDataDir();
    thaw = await start('cloud-hypervisor');
  });
  after(async () => {
    await thaw?.end();
    await removeDir(dataDir);
  });

  it('answers from a restored microVM', async () => {
    assert.match(thaw.said(), /hypervisor \(Cloud Hypervisor, the guest kernel booted under KVM\)/);
    for (const path of ['/', '/some/path']) {
      const response = await fetch(`${thaw.url}/fn/hello${path}`);
      assert.equal(response.status, 200, await response.clone().text());
      const body = (await response.json()) as { vm: string; path: string };
      assert.match(body.vm, /^vm-[0-9a-f]{12}$/);
      assert.equal(body.path, path);
      assert.match(response.headers.get('x-thaw-tier')!, /^(warm|local)$/);
    }
  });

  it('serves the unmodified E2B client, over a pause, too', async () => {
    const connection = {
      apiKey: thaw.apiKey,
      apiUrl: thaw.url,
      sandboxUrl: thaw.url,
      requestTimeoutMs: 120_000,
    };
    const sandbox = await Sandbox.create('base', { ...connection, timeoutMs: 600_000 });
    try {
      const result = await sandbox.commands.run(`python3 -c 'print(6 * 7)'`, { timeoutMs: 120_000 });
      assert.deepEqual([result.exitCode, result.stdout], [0, '42\n']);
      await sandbox.files.write('/home/user/note.txt', 'kept');
      await sandbox.pause(connection);
      const again = await Sandbox.connect(sandbox.sandboxId, connection);
      assert.equal(await again.files.read('/home/user/note.txt'), 'kept');
    } finally {
      await sandbox.kill();
    }
  });

  it('is chosen by auto, and is remembered', async () => {
    const { stdout } = await runCli(['doctor', '--json'], {
      THAW_DATA_DIR: dataDir,
      THAW_HYPERVISOR: 'cloud-hypervisor',
    });
    const { findings } = JSON.parse(stdout) as {
      findings: { what: string; state: string; detail: string }[];
    };
    assert.match(
      findings.find(({ what }) => what === 'hypervisor')!.detail,
      /^Cloud Hypervisor 53\S*: the guest/,
    );
    const hardening = findings.filter(({ what }) => what.startsWith('hardening: '));
    const lacking = hardening.filter(({ state }) => state !== 'ok');
    assert.ok(hardening.length >= 10);
    // The nested machine's kernel is Debian 12's, which has too old a Landlock.
    assert.deepEqual(
      lacking.map(({ what }) => what).filter((what) => what !== 'hardening: landlock'),
      [],
      JSON.stringify(lacking),
    );
    // What it leaves so is cleaned up by the next start, and by no later one.
    await thaw.end('SIGKILL');
    if (lacking.length > 0) {
      const strict = await runCli(['up', '--strict'], {
        THAW_DATA_DIR: dataDir,
        THAW_HYPERVISOR: 'cloud-hypervisor',
        THAW_PORT: '0',
        THAW_ADMIN_PORT: '0',
      });
      assert.equal(strict.exitCode, 1);
      assert.match(strict.stderr, /cleaned up after an earlier run: .*process/);
      assert.match(strict.stderr, /THAW_STRICT: not in force for cloud-hypervisor: landlock \(/);
    }
    thaw = await start('auto');
    assert.match(thaw.said(), /hypervisor \(Cloud Hypervisor, /);
    assert.equal((await fetch(`${thaw.url}/fn/hello/`)).status, 200);
  });

  it('leaves nothing', async () => {
    assert.equal(await thaw.end(), 0, thaw.said());
    assert.deepEqual(await readdir(join(dataDir, 'vms')), []);
    assert.deepEqual(await readdir(join(dataDir, 'network')), []);
    assert.equal((await run('ip', ['netns', 'list'])).stdout, '');
    const groups = await readdir('/sys/fs/cgroup');
    for (const name of groups.filter((each) => each.startsWith('thaw-')))
      assert.doesNotMatch(await readFile(join('/sys/fs/cgroup', name, 'cgroup.procs'), 'utf8'), /\d/);
  });
});
