// Owns the slow part of the guest image: Debian's packages as one tar, the kernel and busybox beside it.
// Refuses to own what Thaw adds to it (image.ts). Invariant: named by a hash of what decides its content; a directory
// of that name is whole.
import { createHash } from 'node:crypto';
import { chmod, mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { busyboxPackage, debianSuite, guestPackages, kernelMetaPackage } from './packages.ts';
import { runProgram } from './run-program.ts';

export interface BaseLayer {
  /** Root file system of the guest without Thaw's own files. */
  rootTarPath: string;
  /** Unpacked kernel package: `boot/vmlinuz-*`, `lib/modules/*`. */
  kernelDir: string;
  busyboxPath: string;
}

const downloadScript = join(import.meta.dirname, 'download-kernel.sh');
const withoutDocs = ['/usr/share/doc/*', '/usr/share/man/*', '/usr/share/locale/*', '/usr/share/info/*'];
const bootstrapTimeoutMs = 30 * 60_000;

/** What decides the layer's content, as a name. */
export async function baseLayerKey(): Promise<string> {
  const inputs = [debianSuite, Object.keys(guestPackages), kernelMetaPackage, busyboxPackage, withoutDocs];
  const script = await readFile(downloadScript, 'utf8');
  return createHash('sha256')
    .update(JSON.stringify([1, inputs, script]))
    .digest('hex')
    .slice(0, 16);
}

export async function ensureBaseLayer(
  cacheDir: string,
  onProgress: (step: string) => void,
): Promise<BaseLayer> {
  const dir = join(cacheDir, `base-${await baseLayerKey()}`);
  const made = await layerIn(dir);
  if (made) return made;
  const partialDir = `${dir}.${process.pid}.partial`;
  try {
    await build(partialDir, onProgress);
    await rename(partialDir, dir).catch((error: NodeJS.ErrnoException) => {
      // Another process was as quick: its layer is as good.
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
    });
  } finally {
    await rm(partialDir, { recursive: true, force: true });
  }
  return (await layerIn(dir))!;
}

async function layerIn(dir: string): Promise<BaseLayer | undefined> {
  const names = await readdir(dir).catch(() => undefined);
  if (names === undefined) return undefined;
  return {
    rootTarPath: join(dir, 'root.tar'),
    kernelDir: join(dir, 'kernel'),
    busyboxPath: join(dir, 'busybox/bin/busybox'),
  };
}

async function build(dir: string, onProgress: (step: string) => void): Promise<void> {
  await rm(dir, { recursive: true, force: true });
  await mkdir(dir, { recursive: true });
  const downloadDir = join(dir, 'packages');
  await mkdir(downloadDir);
  // Without root mmdebstrap works in a user namespace, as a user that may not write here otherwise.
  await chmod(downloadDir, 0o777);
  onProgress(`installing ${Object.keys(guestPackages).length} Debian packages into the guest's root`);
  await runProgram('mmdebstrap', bootstrapArgs(join(dir, 'root.tar')), {
    timeoutMs: bootstrapTimeoutMs,
    env: {
      THAW_DOWNLOAD_DIR: downloadDir,
      THAW_KERNEL_META: kernelMetaPackage,
      THAW_BUSYBOX: busyboxPackage,
      // One date in all files: the same packages give the same bytes.
      SOURCE_DATE_EPOCH: '1700000000',
    },
    onOutput: (line) => {
      const step = /^I: (.*)/.exec(line)?.[1];
      if (step) onProgress(step);
    },
  });
  onProgress('unpacking the kernel');
  for (const name of await readdir(downloadDir)) {
    const target = name.startsWith('linux-image')
      ? 'kernel'
      : name.startsWith('busybox')
        ? 'busybox'
        : undefined;
    if (target) await runProgram('dpkg-deb', ['-x', join(downloadDir, name), join(dir, target)]);
  }
  await rename(join(downloadDir, 'packages.txt'), join(dir, 'packages.txt'));
  await rm(downloadDir, { recursive: true });
}

const bootstrapArgs = (rootTarPath: string): string[] => [
  '--variant=minbase',
  '--aptopt=APT::Install-Recommends "false"',
  `--include=${Object.keys(guestPackages).join(',')}`,
  ...withoutDocs.map((path) => `--dpkgopt=path-exclude=${path}`),
  `--customize-hook=${downloadScript}`,
  debianSuite,
  rootTarPath,
];
