// Owns what the nested machine starts from: a root disk of Debian packages (cached by its package list and init) and a
// payload disk with the project, its node_modules, the guest image and the named hypervisor binary.
// Invariant: a cached root appears under its final name only when it is whole; nothing is downloaded but packages.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  access,
  chmod,
  copyFile,
  cp,
  mkdir,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  truncate,
} from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import type { GuestImage } from '../../pool/hypervisor/hypervisor.ts';
import { Cleanup } from '../../shared/cleanup.ts';

const run = promisify(execFile);
const projectDir = join(import.meta.dirname, '../..');
const rootSizeBytes = 4 * 1024 ** 3;
const payloadSizeBytes = 24 * 1024 ** 3;

/** What Thaw needs on a host, a kernel with KVM, and nothing else. */
const packages = [
  'linux-image-cloud-amd64',
  'kmod',
  'iproute2',
  'nftables',
  'libstdc++6',
  'libgcc-s1',
  'libatomic1',
  'procps',
  'e2fsprogs',
  'redis-server',
];

export interface MachineDisks {
  kernelPath: string;
  initrdPath: string;
  rootPath: string;
  payloadPath: string;
  /** Where the machine's console goes; nowhere when absent. */
  consolePath?: string;
}

export interface Payload {
  binaryPath: string;
  image: GuestImage;
}

/** Builds the root disk when the cache has none of these inputs. @returns its directory. */
export async function ensureMachineRoot(
  cacheDir: string,
  onProgress: (step: string) => void,
): Promise<string> {
  const init = await readFile(join(import.meta.dirname, 'init.sh'));
  const key = createHash('sha256').update(JSON.stringify(packages)).update(init).digest('hex').slice(0, 16);
  const dir = join(cacheDir, `root-${key}`);
  if (await exists(dir)) return dir;
  const partial = `${dir}.partial`;
  await using undo = new Cleanup();
  undo.defer('partial root', () => rm(partial, { recursive: true, force: true }));
  await rm(partial, { recursive: true, force: true });
  await mkdir(partial, { recursive: true });
  onProgress('installing the nested machine from Debian packages');
  const tree = join(partial, 'tree');
  await run('mmdebstrap', [...debstrapOptions, `--include=${packages.join(',')}`, 'bookworm', tree]);
  await copyFile(join(import.meta.dirname, 'init.sh'), join(tree, 'init.sh'));
  await chmod(join(tree, 'init.sh'), 0o755);
  for (const [prefix, name] of [
    ['vmlinuz-', 'kernel'],
    ['initrd.img-', 'initrd'],
  ] as const)
    await copyFile(join(tree, 'boot', await onlyEntry(join(tree, 'boot'), prefix)), join(partial, name));
  await makeExt4(join(partial, 'root'), rootSizeBytes, tree);
  await rm(tree, { recursive: true });
  await rename(partial, dir);
  undo.disarm();
  return dir;
}

/** @returns disks of this run alone, in `runDir`. */
export async function makeDisks(
  rootDir: string,
  runDir: string,
  payload: Payload,
  onProgress: (step: string) => void,
): Promise<MachineDisks> {
  onProgress('packing the project, the guest image and the hypervisor');
  const tree = join(runDir, 'payload');
  const thaw = join(tree, 'thaw');
  await mkdir(thaw, { recursive: true });
  for (const path of await projectFiles()) await cp(join(projectDir, path), join(thaw, path));
  await copyTree(await realpath(join(projectDir, 'node_modules')), join(thaw, 'node_modules'));
  // Where the project looks for it, with the home directory that `init.sh` sets.
  const imagesDir = join(tree, 'home/.cache/thaw');
  await mkdir(imagesDir, { recursive: true });
  const imageDir = dirname(payload.image.rootPath);
  await copyTree(imageDir, join(imagesDir, basename(imageDir)));
  await mkdir(join(tree, 'bin'));
  // One file system with the image: VMMs get links to files, not copies; and nothing of it is in memory.
  await mkdir(join(tree, 'tmp'));
  await copyFile(payload.binaryPath, join(tree, 'bin', 'cloud-hypervisor'));
  const payloadPath = join(runDir, 'payload.ext4');
  await makeExt4(payloadPath, payloadSizeBytes, tree);
  await rm(tree, { recursive: true });
  const rootPath = join(runDir, 'root.ext4');
  await copyTree(join(rootDir, 'root'), rootPath);
  return { kernelPath: join(rootDir, 'kernel'), initrdPath: join(rootDir, 'initrd'), rootPath, payloadPath };
}

const debstrapOptions = [
  '--variant=minbase',
  '--quiet',
  '--aptopt=APT::Install-Recommends "false"',
  '--dpkgopt=path-exclude=/usr/share/doc/*',
  '--dpkgopt=path-exclude=/usr/share/man/*',
];

/** What git knows or would add: no build products, no data directory. */
async function projectFiles(): Promise<string[]> {
  const { stdout } = await run('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: projectDir,
    maxBuffer: 16 * 1024 * 1024,
  });
  const listed = stdout.split('\0').filter((path) => path !== '');
  const present = await Promise.all(listed.map((path) => exists(join(projectDir, path))));
  return listed.filter((path, index) => present[index] && path !== 'node_modules');
}

async function copyTree(from: string, to: string): Promise<void> {
  await run('cp', ['--archive', '--sparse=always', '--reflink=auto', '--', from, to]);
}

async function makeExt4(path: string, sizeBytes: number, tree: string): Promise<void> {
  await run('truncate', ['-s', '0', path]);
  await truncate(path, sizeBytes);
  const lazy = 'lazy_itable_init=1,lazy_journal_init=1';
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-E', lazy, '-d', tree, path]);
}

async function onlyEntry(dir: string, prefix: string): Promise<string> {
  const found = (await readdir(dir)).filter((name) => name.startsWith(prefix));
  if (found.length !== 1) throw new Error(`${dir}: expected one ${prefix}*, found ${found.join(', ')}`);
  return found[0]!;
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
