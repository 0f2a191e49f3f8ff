// Create, tell about, list, find again, extend, end.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b, sandbox }: Stage): Promise<void> => {
  assert.equal(await sandbox.isRunning(), true);
  const info = await sandbox.getInfo();
  assert.equal(info.sandboxId, sandbox.sandboxId);
  assert.equal(info.state, 'running');
  await sandbox.setTimeout(600_000);
  assert.ok((await sandbox.getInfo()).endAt.getTime() - Date.now() > 590_000);
  const marked = await e2b.Sandbox.create('base', { metadata: { mark: `${sandbox.sandboxId} & co` } });
  const listed = await e2b.Sandbox.list({
    query: { metadata: { mark: `${sandbox.sandboxId} & co` } },
  }).nextItems();
  assert.deepEqual(
    listed.map((row) => row.sandboxId),
    [marked.sandboxId],
  );
  const again = await e2b.Sandbox.connect(marked.sandboxId);
  assert.equal((await again.commands.run('echo here')).stdout, 'here\n');
  assert.equal(await marked.kill(), true);
  assert.equal(await again.isRunning(), false);
  assert.equal(await e2b.Sandbox.kill(marked.sandboxId), false);
};
