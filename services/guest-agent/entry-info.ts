// Owns envd's EntryInfo: what a directory entry looks like on the wire.
// Invariant: a symbolic link reports its target's type and metadata, and itself by `symlinkTarget` and `isSymlink`;
// one whose target is gone is FILE_TYPE_SYMLINK.
import { lstat as lstatWithCallback, type Stats } from 'node:fs';
import { realpath, stat, statfs } from 'node:fs/promises';
import { basename } from 'node:path';
import { promisify } from 'node:util';
import type { Accounts } from './accounts.ts';
import { type Metadata, readMetadata } from './file-metadata.ts';

/** The one of node:fs/promises takes a buffer outside the heap for each call: a long listing would fill the guest. */
const lstat = promisify(lstatWithCallback);

const permissionBits = 0o777;

/** What many entries of one call have in common. */
export class EntryReader {
  readonly #accounts: Accounts;
  readonly #askLocal: typeof isLocal;
  readonly #local = new Map<number, boolean>();

  constructor(accounts: Accounts, askLocal = isLocal) {
    this.#accounts = accounts;
    this.#askLocal = askLocal;
  }

  /** @throws the file system's error when the entry itself is absent. */
  async read(path: string): Promise<object> {
    const own = await lstat(path);
    const target = own.isSymbolicLink() ? await linkTarget(path) : undefined;
    const facts = target?.facts ?? own;
    const metadata = await this.#metadata(path, facts);
    return {
      name: basename(path),
      type: fileType(facts),
      path,
      size: String(own.size),
      mode: facts.mode & permissionBits,
      permissions: permissionText(own),
      owner: this.#accounts.userName(own.uid),
      group: this.#accounts.groupName(own.gid),
      modifiedTime: new Date(own.mtimeMs).toISOString(),
      ...(target === undefined ? {} : { symlinkTarget: target.path, isSymlink: true }),
      ...(metadata === undefined ? {} : { metadata }),
    };
  }

  /** Links without a target lead to none, special files have none, and a remote file system may keep a call waiting. */
  async #metadata(path: string, facts: Stats): Promise<Metadata | undefined> {
    if (!facts.isFile() && !facts.isDirectory()) return undefined;
    return (await this.#isLocal(facts.dev, path)) ? readMetadata(path) : undefined;
  }

  /** Only an answer is shared: an entry that vanished before the question says nothing of its neighbours. */
  async #isLocal(device: number, path: string): Promise<boolean> {
    const known = this.#local.get(device);
    if (known !== undefined) return known;
    const local = await this.#askLocal(path);
    this.#local.set(device, local);
    return local;
  }
}

/** What the kernel says of file systems that others answer for: NFS, SMB, CIFS, SMB 2, FUSE. */
const networkTypes = new Set([0x6969, 0x517b, 0xff534d42, 0xfe534d42, 0x65735546]);

export async function isLocal(path: string): Promise<boolean> {
  const { type } = await statfs(path);
  return !networkTypes.has(type >>> 0);
}

async function linkTarget(path: string): Promise<{ path: string; facts: Stats | undefined }> {
  const resolved = await realpath(path).catch(() => path);
  return { path: resolved, facts: await stat(path).catch(() => undefined) };
}

function fileType(facts: Stats): string {
  if (facts.isFile()) return 'FILE_TYPE_FILE';
  if (facts.isDirectory()) return 'FILE_TYPE_DIRECTORY';
  if (facts.isSymbolicLink()) return 'FILE_TYPE_SYMLINK';
  return 'FILE_TYPE_UNSPECIFIED';
}

/** Go's notation, which clients compare: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`. */
export function permissionText(facts: Stats): string {
  const kind =
    (facts.isDirectory() ? 'd' : '') +
    (facts.isSymbolicLink() ? 'L' : '') +
    (facts.isBlockDevice() || facts.isCharacterDevice() ? 'D' : '') +
    (facts.isFIFO() ? 'p' : '') +
    (facts.isSocket() ? 'S' : '') +
    (facts.mode & 0o4000 ? 'u' : '') +
    (facts.mode & 0o2000 ? 'g' : '') +
    (facts.isCharacterDevice() ? 'c' : '') +
    (facts.mode & 0o1000 ? 't' : '');
  const bits = [...'rwxrwxrwx'].map((letter, index) => (facts.mode & (0o400 >> index) ? letter : '-'));
  return (kind || '-') + bits.join('');
}
