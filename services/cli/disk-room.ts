// Owns what a node gives up when the disk of its data directory fills up, besides snapshots: page files and segments that
// nobody works with any more. Refuses to own when and how much (pool/snapshot/eviction.ts).
// Invariant: nothing goes that somebody writes or reads.
import { readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Paths } from '../../pool/host/paths.ts';
import { type Cache, Eviction } from '../../pool/snapshot/eviction.ts';
import type { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import { unsharedBytes } from '../../pool/snapshot/record.ts';
import type { StoredSnapshots } from '../../pool/snapshot/stored-snapshots.ts';
import type { Config } from '../../shared/config.ts';
import type { Log } from '../../shared/log.ts';

export interface DiskRoomOptions {
  config: Config;
  paths: Paths;
  log: Log;
  library: SnapshotLibrary;
  stored: StoredSnapshots | undefined;
  inUse(): ReadonlySet<string>;
  /** Uploads that clients send again when they are asked. */
  dropUploads(): Promise<number>;
}

/** Longer than the pager may take to make one. */
const keptAtLeastMs = 900_000;

export function evictionOf(options: DiskRoomOptions): Eviction {
  const { config, paths, log, library, stored, inUse, dropUploads } = options;
  const caches: Cache[] = [
    { kind: 'upload', empty: dropUploads },
    {
      kind: 'kept-page-file',
      empty: () =>
        removeEntries(paths.keptDir, (name, ageMs) => {
          const snapshotId = name.split('.')[0]!;
          return ageMs > keptAtLeastMs && !library.use.isUsed(snapshotId);
        }),
    },
    { kind: 'spool', empty: () => removeEntries(paths.spoolDir, (name) => name !== stored?.publishing) },
  ];
  const { evictAbovePercent: abovePercent, evictToPercent: toPercent } = config;
  return new Eviction({ marks: { abovePercent, toPercent }, library, stored, inUse, caches, log });
}

/** @returns bytes that this gave back. */
export async function removeEntries(
  dir: string,
  mayGo: (name: string, ageMs: number) => boolean,
): Promise<number> {
  let bytes = 0;
  for (const name of await readdir(dir).catch(() => [])) {
    const path = join(dir, name);
    const facts = await stat(path).catch(() => undefined);
    if (!facts || !mayGo(name, Date.now() - facts.mtimeMs)) continue;
    bytes += await unsharedBytes(path);
    await rm(path, { recursive: true, force: true });
  }
  return bytes;
}
