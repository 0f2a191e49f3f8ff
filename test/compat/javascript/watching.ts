// Changes in a directory and below it, as they happen.
import type { Stage } from './scenario.ts';
import { eventually } from './scenario.ts';

export default async ({ sandbox }: Stage): Promise<void> => {
  await sandbox.files.makeDir('watched/below');
  const seen: string[] = [];
  const handle = await sandbox.files.watchDir(
    'watched',
    (event) => void seen.push(`${event.type} ${event.name}`),
    {
      recursive: true,
      timeoutMs: 0,
    },
  );
  await sandbox.files.write('watched/below/file', 'x');
  await eventually('create', () => seen.includes('create below/file'));
  await eventually('write', () => seen.includes('write below/file'));
  await sandbox.files.remove('watched/below/file');
  await eventually('remove', () => seen.includes('remove below/file'));
  await handle.stop();
};
