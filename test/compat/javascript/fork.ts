// Two forks go on from the sandbox's state, and so does the sandbox.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b, sandbox, skip }: Stage): Promise<void> => {
  if (typeof sandbox.fork !== 'function') skip('the client has no fork');
  await sandbox.files.write('kept', 'yes');
  const forks = await sandbox.fork({ count: 2 });
  assert.equal(forks.length, 2);
  for (const fork of forks) {
    assert.ok(fork instanceof e2b.Sandbox, String(fork));
    assert.equal(await fork.files.read('kept'), 'yes');
    await fork.kill();
  }
  assert.equal(await sandbox.isRunning(), true);
};
