// Owns what is known of one file or directory of a sandbox, and its form on the wire.

export interface EntryInfo {
  name: string;
  /** Absolute. */
  path: string;
  /** A symbolic link has its target's type; `symlink` is one whose target is gone. */
  type: 'file' | 'directory' | 'symlink' | 'other';
  sizeBytes: number;
  /** Permission bits, for example 0o644. */
  mode: number;
  /** As `ls -l` shows them, for example `-rw-r--r--`. */
  permissions: string;
  owner: string;
  group: string;
  modifiedAt: Date;
  /** Where a symbolic link leads. */
  symlinkTarget: string | undefined;
  /** What was given as `metadata` when it was written. */
  metadata: Record<string, string>;
}

export interface WireEntry {
  name?: string;
  path?: string;
  type?: string;
  size?: string | number;
  mode?: number;
  permissions?: string;
  owner?: string;
  group?: string;
  modifiedTime?: string;
  symlinkTarget?: string;
  metadata?: Record<string, string>;
}

const types: Record<string, EntryInfo['type']> = {
  FILE_TYPE_FILE: 'file',
  FILE_TYPE_DIRECTORY: 'directory',
  FILE_TYPE_SYMLINK: 'symlink',
};

export const entryInfoOf = (wire: WireEntry): EntryInfo => ({
  name: wire.name ?? '',
  path: wire.path ?? '',
  type: types[wire.type ?? ''] ?? 'other',
  sizeBytes: Number(wire.size ?? 0),
  mode: wire.mode ?? 0,
  permissions: wire.permissions ?? '',
  owner: wire.owner ?? '',
  group: wire.group ?? '',
  modifiedAt: new Date(wire.modifiedTime ?? 0),
  symlinkTarget: wire.symlinkTarget,
  metadata: wire.metadata ?? {},
});
