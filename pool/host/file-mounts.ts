// Owns giving a file a second name where no link can be made, because it is on another file system: a bind mount.
// Invariant: whoever mounts unmounts; what a crash leaves is found in the kernel's list by the directory it is in.
import { readFile, writeFile } from 'node:fs/promises';
import { runTool } from './host-tool.ts';

/** @param target absent before. */
export async function mountFile(source: string, target: string): Promise<void> {
  await writeFile(target, '', { flag: 'wx' });
  await runTool('mount', ['--bind', source, target]);
}

/** Whoever has the file open keeps it. */
export async function unmountFile(path: string): Promise<void> {
  // --no-canonicalize: looking at a file whose file system is dead is an error in itself.
  await runTool('umount', ['-l', '--no-canonicalize', path]);
}

/** @returns how many mounts stood below `dir`. */
export async function unmountBelow(dir: string): Promise<number> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).trim().split('\n');
  const points = lines
    .map((line) => line.split(' ')[4]!.replace(/\\([0-7]{3})/g, (_, octal) => charOf(octal)))
    .filter((point) => point.startsWith(`${dir}/`));
  for (const point of points.reverse()) await unmountFile(point);
  return points.length;
}

const charOf = (octal: string): string => String.fromCharCode(Number.parseInt(octal, 8));
