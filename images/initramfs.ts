// Owns the first file system of the guest: busybox, the kernel modules in loading order, and the program that goes on
// to the real root. Invariant: only what is needed until then is in it.
import { chmod, copyFile, mkdir, readdir, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { BaseLayer } from './base-layer.ts';
import { kernelModules } from './packages.ts';
import { runProgram } from './run-program.ts';

export const initScriptPath = join(import.meta.dirname, 'initramfs-init.sh');

/** @returns the kernel's path. */
export async function kernelOf({ kernelDir }: BaseLayer): Promise<string> {
  const names = await readdir(join(kernelDir, 'boot'));
  return join(kernelDir, 'boot', names.find((name) => name.startsWith('vmlinuz-'))!);
}

export async function writeInitramfs(base: BaseLayer, workDir: string, targetPath: string): Promise<void> {
  const treeDir = join(workDir, 'initramfs');
  for (const name of ['bin', 'modules', 'dev', 'proc', 'sys', 'ro', 'rw', 'new'])
    await mkdir(join(treeDir, name), { recursive: true });
  await copyFile(base.busyboxPath, join(treeDir, 'bin/busybox'));
  await copyFile(initScriptPath, join(treeDir, 'init'));
  await chmod(join(treeDir, 'init'), 0o755);
  await copyModules(base, join(treeDir, 'modules'));
  const names = await readdir(treeDir, { recursive: true });
  // Uncompressed: the kernel unpacks any form as fast, and page cache is shared.
  await runProgram(
    'cpio',
    ['--create', '--format=newc', '--quiet', '--reproducible', '--owner=0:0', '--file', targetPath],
    { cwd: treeDir, input: `${names.sort().join('\n')}\n` },
  );
}

async function copyModules({ kernelDir }: BaseLayer, modulesDir: string): Promise<void> {
  const versions = await readdir(join(kernelDir, 'lib/modules'));
  const sourceDir = join(kernelDir, 'lib/modules', versions[0]!, 'kernel');
  for (const module of kernelModules) {
    const path = join(modulesDir, `${basename(module)}.ko`);
    await copyFile(join(sourceDir, `${module}.ko`), path);
    await runProgram('strip', ['--strip-debug', path]);
  }
  await writeFile(
    join(modulesDir, 'order'),
    kernelModules.map((module) => `${basename(module)}.ko\n`).join(''),
  );
}
