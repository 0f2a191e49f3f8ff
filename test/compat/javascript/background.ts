// A command in the background: listed, connected to again by its process id, killed.
import assert from 'node:assert/strict';
import { eventually, type Stage } from './scenario.ts';

export default async ({ e2b, sandbox }: Stage): Promise<void> => {
  const handle = await sandbox.commands.run('sleep 1; while :; do echo tick; sleep 0.2; done', {
    background: true,
    timeoutMs: 0,
  });
  assert.ok((await sandbox.commands.list()).some(({ pid }) => pid === handle.pid));
  await handle.disconnect();
  let heard = '';
  const again = await sandbox.commands.connect(handle.pid, {
    onStdout: (text) => {
      heard += text;
    },
    timeoutMs: 0,
  });
  await eventually('a tick', () => heard.includes('tick\n'));
  assert.equal(await sandbox.commands.kill(handle.pid), true);
  await assert.rejects(again.wait(), e2b.CommandExitError);
  assert.equal(await sandbox.commands.kill(handle.pid), false);
};
