// A sandbox that pauses at its time-out and goes on with the next request.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';
import { eventually } from './scenario.ts';

export default async ({ e2b }: Stage): Promise<void> => {
  const sandbox = await e2b.Sandbox.create('base', {
    timeoutMs: 3_000,
    lifecycle: { onTimeout: 'pause', autoResume: true },
  });
  try {
    assert.deepEqual((await sandbox.getInfo()).lifecycle, { onTimeout: 'pause', autoResume: true });
    await sandbox.files.write('kept', 'yes');
    await eventually('it is paused', async () => (await sandbox.getInfo()).state === 'paused');
    assert.equal(await sandbox.files.read('kept'), 'yes');
    assert.equal((await sandbox.getInfo()).state, 'running');
  } finally {
    await sandbox.kill();
  }
};
