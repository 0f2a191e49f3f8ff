// Commands and files of another user than the default one.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ sandbox }: Stage): Promise<void> => {
  assert.equal((await sandbox.commands.run('whoami')).stdout, 'user\n');
  assert.equal((await sandbox.commands.run('whoami', { user: 'root' })).stdout, 'root\n');
  await sandbox.files.write('/root/secret', 'x', { user: 'root' });
  assert.equal((await sandbox.files.getInfo('/root/secret', { user: 'root' })).owner, 'root');
  await assert.rejects(sandbox.commands.run('true', { user: 'nobody-of-that-name' }));
};
