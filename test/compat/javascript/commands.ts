// Output, exit codes, environment, directory, time-outs.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b, sandbox }: Stage): Promise<void> => {
  const pieces: string[] = [];
  const result = await sandbox.commands.run('echo out; echo err >&2', {
    onStdout: (text) => void pieces.push(text),
  });
  assert.deepEqual([result.exitCode, result.stdout, result.stderr], [0, 'out\n', 'err\n']);
  assert.equal(pieces.join(''), 'out\n');
  await assert.rejects(sandbox.commands.run('exit 3'), (error) => {
    assert.ok(error instanceof e2b.CommandExitError);
    assert.equal(error.exitCode, 3);
    return true;
  });
  const { stdout } = await sandbox.commands.run('echo $OWN; pwd', { envs: { OWN: 'own' }, cwd: '/tmp' });
  assert.equal(stdout, 'own\n/tmp\n');
  await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 500 }), e2b.TimeoutError);
};
