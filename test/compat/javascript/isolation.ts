// No way out when it is not wanted: what is asked for at create is refused or kept, never ignored.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ e2b }: Stage): Promise<void> => {
  const sandbox = await e2b.Sandbox.create('base', { allowInternetAccess: false });
  try {
    const result = await sandbox.commands.run(
      'timeout 5 bash -c "echo > /dev/tcp/1.1.1.1/80" 2> /dev/null && echo open || echo closed',
    );
    assert.equal(result.stdout, 'closed\n');
  } finally {
    await sandbox.kill();
  }
};
