// What is given with a file when it is written comes back with its information.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ sandbox }: Stage): Promise<void> => {
  await sandbox.files.write('noted', 'x', { metadata: { origin: 'test' } });
  const info = await sandbox.files.getInfo('noted');
  assert.equal(info.metadata?.origin, 'test');
};
