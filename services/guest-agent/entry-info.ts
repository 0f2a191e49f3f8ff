// Owns envd's EntryInfo: what a directory entry looks like on the wire.
// Invariant: a symbolic link reports its target's type and metadata, and itself by `symlinkTarget` and `isSymlink`;
// one whose target is gone is FILE_TYPE_SYMLINK.
import type { Stats } from 'node:fs';
import { lstat, realpath, stat } from 'node:fs/promises';
import { basename } from 'node:path';
import type { Accounts } from './accounts.ts';
import { readMetadata } from './file-metadata.ts';

const permissionBits = 0o777;

/** @throws the file system's error when the entry itself is absent. */
export async function entryInfo(path: string, accounts: Accounts): Promise<object> {
  const own = await lstat(path);
  const target = own.isSymbolicLink() ? await linkTarget(path) : undefined;
  const facts = target?.facts ?? own;
  // A link whose target is gone leads to no attributes, and special files can have none.
  const metadata = facts.isFile() || facts.isDirectory() ? readMetadata(path) : undefined;
  return {
    name: basename(path),
    type: fileType(facts),
    path,
    size: String(own.size),
    mode: facts.mode & permissionBits,
    permissions: permissionText(own),
    owner: accounts.userName(own.uid),
    group: accounts.groupName(own.gid),
    modifiedTime: new Date(own.mtimeMs).toISOString(),
    ...(target === undefined ? {} : { symlinkTarget: target.path, isSymlink: true }),
    ...(metadata === undefined ? {} : { metadata }),
  };
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
