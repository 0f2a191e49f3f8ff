// A command's standard input, written to and closed.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ sandbox }: Stage): Promise<void> => {
  const handle = await sandbox.commands.run('cat; echo end', { background: true, stdin: true });
  await sandbox.commands.sendStdin(handle.pid, 'one\n');
  await sandbox.commands.sendStdin(handle.pid, 'two\n');
  await sandbox.commands.closeStdin(handle.pid);
  assert.equal((await handle.wait()).stdout, 'one\ntwo\nend\n');
};
