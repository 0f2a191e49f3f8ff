// What is not there, and who may not: each client's own error classes.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b, sandbox }: Stage): Promise<void> => {
  await assert.rejects(e2b.Sandbox.create('no-such-template'), /404|not found|no template/i);
  const apiKey = `e2b_${'1'.repeat(40)}`;
  await assert.rejects(e2b.Sandbox.list({ apiKey }).nextItems(), e2b.AuthenticationError);
  const gone = `i${'0'.repeat(20)}`;
  await assert.rejects(e2b.Sandbox.connect(gone), e2b.NotFoundError);
  assert.equal(await e2b.Sandbox.kill(gone), false);
  await sandbox.files.makeDir('directory');
  const large = new Blob([Buffer.alloc(8 * 1024 * 1024)]);
  await assert.rejects(sandbox.files.write('directory', large), e2b.SandboxError);
  await assert.rejects(sandbox.files.read('absent'), e2b.NotFoundError);
  await sandbox.kill();
  await assert.rejects(sandbox.commands.run('true'), e2b.SandboxError);
};
