// What a sandbox uses.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';
import { eventually } from './scenario.ts';

export default async ({ sandbox }: Stage): Promise<void> => {
  await eventually('a sample', async () => (await sandbox.getMetrics()).length > 0);
  const [sample] = await sandbox.getMetrics();
  assert.ok(sample!.memTotal > 0 && sample!.cpuCount > 0);
};
