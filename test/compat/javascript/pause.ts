// Paused, not running, resumed with its processes, files and id.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';
import { eventually } from './scenario.ts';

export default async ({ e2b, sandbox }: Stage): Promise<void> => {
  await sandbox.files.write('kept', 'yes');
  await sandbox.commands.run(
    'nohup sh -c "while :; do date +%s%N > counter; sleep 0.2; done" > /dev/null 2>&1 &',
  );
  const id = sandbox.sandboxId;
  const pause = sandbox.pause ?? sandbox.betaPause;
  await pause.call(sandbox);
  assert.equal(await sandbox.isRunning(), false);
  const resumed = await e2b.Sandbox.connect(id);
  assert.equal(resumed.sandboxId, id);
  assert.equal(await resumed.files.read('kept'), 'yes');
  // It is empty between its shell's opening and writing it.
  const counts = async () => Number(await resumed.files.read('counter'));
  const before = await counts();
  await eventually('the counter to go on', async () => (await counts()) > before);
};
