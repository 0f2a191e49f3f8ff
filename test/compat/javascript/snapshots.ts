// A snapshot of a running sandbox: listed, the start of new ones, deleted.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b, sandbox, skip }: Stage): Promise<void> => {
  if (typeof sandbox.createSnapshot !== 'function') skip('the client has no snapshots');
  await sandbox.files.write('kept', 'yes');
  const snapshot = await sandbox.createSnapshot();
  assert.equal(await sandbox.isRunning(), true);
  const listed = await sandbox.listSnapshots().nextItems();
  assert.deepEqual(
    listed.map((row) => row.snapshotId),
    [snapshot.snapshotId],
  );
  await sandbox.kill();
  const clones = await Promise.all([1, 2].map(() => e2b.Sandbox.create(snapshot.snapshotId)));
  for (const clone of clones) assert.equal(await clone.files.read('kept'), 'yes');
  assert.notEqual(clones[0]!.sandboxId, clones[1]!.sandboxId);
  for (const clone of clones) await clone.kill();
  assert.equal(await e2b.Sandbox.deleteSnapshot(snapshot.snapshotId), true);
  assert.equal(await e2b.Sandbox.deleteSnapshot(snapshot.snapshotId), false);
};
