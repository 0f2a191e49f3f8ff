// Mounts as they are left behind. What is served on them is tested with the pager.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { canMountFuse, mountsOn, unmountStale } from './fuse-mount.ts';

const ability = await canMountFuse();
const limits = { timeout: 30_000 };
const program = join(import.meta.dirname, 'hung-pager-for-tests.ts');

describe('a mount that was left', { skip: ability.ok ? false : ability.reason }, () => {
  it(
    'row 9: ends with its server and its readers, also when a thread of it stands in the kernel',
    limits,
    async () => {
      const dir = await mkdtemp(join(tmpdir(), 'thaw-hung-'));
      const mountDir = join(dir, 'mnt');
      const pager = spawn(process.execPath, [program, mountDir], { stdio: ['ignore', 'pipe', 'inherit'] });
      try {
        await said(pager, 'mounted');
        const reader = spawn('cat', [join(mountDir, 'pages')], { stdio: 'ignore' });
        await said(pager, 'stuck');
        pager.kill('SIGKILL');
        while (!(await mainThreadIsDead(pager.pid!))) await setImmediate();
        assert.equal(pager.exitCode ?? pager.signalCode, null, 'a thread stands in the kernel');
        const ended = Promise.all([once(reader, 'exit'), once(pager, 'exit')]);
        assert.equal(await unmountStale(mountDir), 1);
        const [[exitCode], [, signal]] = await ended;
        assert.deepEqual([exitCode, signal], [1, 'SIGKILL']);
        assert.equal(await mountsOn(mountDir), 0);
      } finally {
        pager.kill('SIGKILL');
        await unmountStale(mountDir);
        await rm(dir, { recursive: true, force: true });
      }
    },
  );
});

async function said(child: ChildProcess, word: string): Promise<void> {
  for (let text = ''; !text.includes(word); ) {
    const [chunk] = await once(child.stdout!, 'data');
    text += chunk;
  }
}

const mainThreadIsDead = async (pid: number): Promise<boolean> =>
  (await readFile(`/proc/${pid}/stat`, 'utf8')).includes(') Z ');
