// Owns how a Cloud Hypervisor process is confined: a directory that is all it sees, a uid of its own, no capability, no
// way to new rights, limits on what it opens. Refuses to own its network (pool/host/network-slots.ts) and cgroup.
// Invariant: a file is put into a jail as a link, so that nothing outside can be named from inside; a measure that this
// host does not allow is left out with its reason, which `hardening.ts` (one level up) reports.
import { statSync } from 'node:fs';
import { chmod, chown, copyFile, link, mkdir, open, readFile, rename, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { mountFile } from '../../host/file-mounts.ts';
import { runTool } from '../../host/host-tool.ts';
import type { NetworkSlot } from '../../host/network-slots.ts';

/** What the VMM opens by its path: the same file by any other name is not found. */
const deviceNodes = [
  { path: 'dev/kvm', stashed: 'kvm', major: '10', minor: '232' },
  { path: 'dev/net/tun', stashed: 'tun', major: '10', minor: '200' },
  { path: 'dev/urandom', stashed: 'urandom', major: '1', minor: '9' },
] as const;
const binaryName = 'cloud-hypervisor';
const maxOpenFiles = 1024;

export interface JailFacts {
  isRoot: boolean;
  /** Why the VMM's root is not its own directory; undefined when it is. */
  noRoot?: string;
}

export class Jail {
  readonly facts: JailFacts;
  readonly #program: readonly string[];
  readonly #stashDir: string;
  readonly #binaryPath: string;
  /** Copies under way, by where they end. */
  readonly #copies = new Map<string, Promise<void>>();

  private constructor(facts: JailFacts, program: readonly string[], stashDir: string, binaryPath: string) {
    this.facts = facts;
    this.#program = program;
    this.#stashDir = stashDir;
    this.#binaryPath = binaryPath;
  }

  /**
   * @param program the binary, alone; only tests put words before it.
   * @param confine false for tests alone: the program runs as who started it.
   */
  static async open(program: readonly string[], stashDir: string, confine = true): Promise<Jail> {
    const binaryPath = program[0]!;
    await mkdir(stashDir, { recursive: true, mode: 0o700 });
    const isRoot = confine && process.getuid?.() === 0;
    const noRoot = await whyNoRoot(program, isRoot, stashDir);
    if (noRoot === undefined) await stashDevices(stashDir);
    return new Jail({ isRoot, ...(noRoot ? { noRoot } : {}) }, program, stashDir, binaryPath);
  }

  /** Makes the directory of one VMM. @param dir absent before. */
  async prepare(dir: string, uid: number): Promise<void> {
    await mkdir(dir, { mode: 0o700 });
    if (this.facts.noRoot === undefined) {
      await mkdir(join(dir, 'dev/net'), { recursive: true });
      for (const { path, stashed } of deviceNodes) await link(join(this.#stashDir, stashed), join(dir, path));
      await this.place(this.#binaryPath, dir, binaryName);
    }
    await this.give(dir, uid);
  }

  /** Lets the VMM write what it is about to open. */
  async give(path: string, uid: number): Promise<void> {
    if (this.facts.isRoot) await chown(path, uid, uid);
  }

  /** The reverse of `give`. */
  async takeBack(path: string, mode: number): Promise<void> {
    if (this.facts.isRoot) await chown(path, 0, 0);
    await chmod(path, mode);
  }

  /** Puts a file into the jail under a name of its own; from another file system by way of a copy that is kept. */
  async place(source: string, dir: string, name: string): Promise<void> {
    const target = join(dir, name);
    try {
      await link(source, target);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
      await link(await this.#copied(source), target);
    }
  }

  /** The file stays its owner's: who may name it may read it, nobody but the owner may write it. */
  async placeReadable(source: string, dir: string, name: string): Promise<void> {
    await this.place(source, dir, name);
    await this.#letRead(join(dir, name));
  }

  async #letRead(path: string): Promise<void> {
    const { mode, uid } = await stat(path);
    if (this.facts.isRoot && ((mode & 0o004) === 0 || (mode & 0o022) !== 0))
      await chmod(path, (mode & 0o600) | 0o444);
    if (this.facts.isRoot && uid !== 0) await chown(path, 0, 0);
  }

  /**
   * The page file: never a copy, for it may be far away and arrive page by page.
   * @returns the path to unmount when the VMM has ended, if it took a mount.
   */
  async placePages(source: string, dir: string, name: string): Promise<string | undefined> {
    const target = join(dir, name);
    try {
      await link(source, target);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
      await mountFile(source, target);
      return target;
    }
    await this.#letRead(target);
    return undefined;
  }

  /** The words that start the VMM in `dir`. */
  command(dir: string, slot: NetworkSlot, args: readonly string[]): string[] {
    const limits = ['prlimit', `--nofile=${maxOpenFiles}`, '--core=0', '--'];
    const { uid } = slot;
    if (!this.facts.isRoot) return [...slot.enter, ...limits, ...this.#program, ...args];
    if (this.facts.noRoot !== undefined) {
      const owner = [`--reuid=${uid}`, `--regid=${uid}`, `--groups=${kvmGroupOf()}`];
      const rights = ['setpriv', '--no-new-privs', '--bounding-set=-all', ...owner, '--'];
      return [...slot.enter, ...limits, ...rights, ...this.#program, ...args];
    }
    // What is left in the bounding set is what `chroot` itself needs; the change of uid takes it away, too.
    const rights = [
      'setpriv',
      '--no-new-privs',
      '--bounding-set=-all,+sys_chroot,+setuid,+setgid,+dac_read_search',
      '--',
    ];
    const root = ['chroot', `--userspec=${uid}:${uid}`, '--groups=', dir, `/${binaryName}`];
    return [...slot.enter, ...limits, ...rights, ...root, ...args];
  }

  async #copied(source: string): Promise<string> {
    const { size, mtimeMs } = await stat(source);
    const target = join(this.#stashDir, `${size}-${Math.round(mtimeMs)}-${basename(source)}`);
    const copying = this.#copies.get(target) ?? copyOnce(source, target);
    this.#copies.set(target, copying);
    copying.catch(() => this.#copies.delete(target));
    await copying;
    return target;
  }
}

async function copyOnce(source: string, target: string): Promise<void> {
  if (await stat(target).catch(() => undefined)) return;
  const partial = `${target}.${process.pid}.partial`;
  await copyFile(source, partial);
  await rename(partial, target);
}

/** @returns the reason why a VMM cannot have its directory as its root here; looks, and changes nothing. */
export async function whyNoRoot(
  program: readonly string[],
  isRoot: boolean,
  dataDir: string,
): Promise<string | undefined> {
  if (!isRoot) return 'Thaw is not root';
  if (program.length > 1 || !(await isStatic(program[0]!))) return 'the binary is not linked statically';
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).trim().split('\n');
  const holding = mounts
    .map((line) => line.split(' '))
    .filter(([, , , , at]) => at === '/' || dataDir === at || dataDir.startsWith(`${at}/`))
    .sort(([, , , , a], [, , , , b]) => b!.length - a!.length)[0];
  if (holding?.[5]?.split(',').includes('nodev'))
    return 'the data directory is on a file system without devices';
  return undefined;
}

/** The devices that every jail gets links to. */
async function stashDevices(stashDir: string): Promise<void> {
  for (const { stashed, major, minor } of deviceNodes) {
    const path = join(stashDir, stashed);
    if (await stat(path).catch(() => undefined)) continue;
    await runTool('mknod', [path, 'c', major, minor]);
    // Only who has a link to it in its jail can name it: the directory is root's.
    await chmod(path, 0o666);
  }
}

/** An ELF file without an interpreter (program header type 3). */
async function isStatic(path: string): Promise<boolean> {
  await using file = await open(path, 'r');
  const { buffer: head } = await file.read(Buffer.alloc(4096), 0, 4096, 0);
  if (head.toString('latin1', 0, 4) !== '\x7fELF') return false;
  const [start, size, count] = [
    Number(head.readBigUInt64LE(32)),
    head.readUInt16LE(54),
    head.readUInt16LE(56),
  ];
  for (let index = 0; index < count; index++) if (head.readUInt32LE(start + index * size) === 3) return false;
  return true;
}

let kvmGroup: number | undefined;
function kvmGroupOf(): number {
  kvmGroup ??= statSync('/dev/kvm').gid;
  return kvmGroup;
}
