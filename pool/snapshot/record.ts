// Owns the record of a local snapshot: what a restore must know, written last, so that a directory with a record is
// a whole snapshot and one without is garbage. The stored form, across nodes, is manifest.ts's.
import { readFileSync } from 'node:fs';
import { open, readdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type Static, Type } from 'typebox';
import { Compile } from 'typebox/compile';
import { snapshotIdPattern } from '../../shared/ids.ts';
import type { Compatibility } from '../hypervisor/hypervisor.ts';
import { snapshotKind } from './manifest.ts';

export const recordFormat = 2;

/** The unit of `stat`, whatever the file system's is. */
const blockBytes = 512;

const snapshotId = Type.String({ pattern: snapshotIdPattern.source });
const count = Type.Integer({ minimum: 0 });

const recordSchema = Type.Object({
  format: Type.Literal(recordFormat),
  snapshotId,
  kind: snapshotKind,
  /** Unique on this node; empty for most. */
  names: Type.Array(Type.String()),
  /** Of a sandbox's snapshot: whose memory it is, in the caller's words. */
  source: Type.Optional(Type.String()),
  /** The snapshot that its VM was restored from. It may be gone: nothing here needs it. */
  parent: Type.Optional(snapshotId),
  /** How many ancestors. */
  depth: count,
  /**
   * `whole`: `pages` is the memory. `delta`: `base-pages` is, but for the pages in `delta` (paths.ts). `paged`: it is in
   * the store, and a pager serves it by `manifest`.
   */
  form: Type.Union([Type.Literal('whole'), Type.Literal('delta'), Type.Literal('paged')]),
  /** Whose page file `base-pages` is a link to; only with `delta`. */
  base: Type.Optional(snapshotId),
  /** The directory it was made in: disks name their backing files by absolute path. */
  dir: Type.String(),
  nonce: Type.String({ pattern: '^[0-9a-f]{32}$' }),
  memoryMb: Type.Integer({ minimum: 1 }),
  vcpus: Type.Integer({ minimum: 1 }),
  compatibility: Type.Object({
    hypervisor: Type.String(),
    hypervisorVersion: Type.String(),
    machine: Type.String(),
    cpu: Type.String(),
    imageDigest: Type.String(),
  }),
  /** Paths that a clone's runner answers once before it counts as warm; absent for snapshots without a runner. */
  prime: Type.Optional(Type.Array(Type.String())),
  createdAt: Type.String(),
  /** Of a sandbox's snapshot: pages that its VM had changed since `base`. */
  dirtyPages: Type.Optional(count),
  /** Of a sandbox's snapshot: how long its VM stood still, in all (`total`) and by stage. */
  pauseMs: Type.Optional(Type.Record(Type.String(), Type.Number())),
  /** Room that its own files take on the host's disk; links to a base count for the base. */
  sizeBytes: count,
});

export type SnapshotRecord = Static<typeof recordSchema>;

// Compiled: a list checks a thousand of them, and interpreting the schema takes half a millisecond each.
const recordCheck = Compile(recordSchema);

/** @returns undefined when there is no whole, readable record in `dir`. */
export async function readRecord(dir: string): Promise<SnapshotRecord | undefined> {
  return parseRecord(dir, await readFile(recordPath(dir), 'utf8').catch(() => ''));
}

/** As `readRecord`, without a turn of the event loop for each: for who reads many. */
export function readRecordNow(dir: string): SnapshotRecord | undefined {
  try {
    return parseRecord(dir, readFileSync(recordPath(dir), 'utf8'));
  } catch {
    return undefined;
  }
}

function parseRecord(dir: string, text: string): SnapshotRecord | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return recordCheck.Check(value) && value.dir === dir ? value : undefined;
  } catch {
    return undefined;
  }
}

export const recordPath = (dir: string): string => join(dir, 'snapshot.json');

/** Replaces the record in `dir` as a whole, and durably. */
export async function writeRecord(dir: string, record: SnapshotRecord): Promise<void> {
  const path = recordPath(dir);
  await writeFile(`${path}.partial`, JSON.stringify(record), { flush: true, mode: 0o600 });
  await rename(`${path}.partial`, path);
  await syncDirectory(dir);
}

/** Gives a finished snapshot its place: from here on it exists. */
export async function publishDirectory(partialDir: string, dir: string): Promise<void> {
  await rename(partialDir, dir);
  await syncDirectory(dirname(dir));
}

/** Room on the host's disk of the files in `dir` but for `others`. */
export async function ownBytes(dir: string, others: readonly string[]): Promise<number> {
  let sizeBytes = 0;
  for (const name of await readdir(dir)) {
    const path = join(dir, name);
    if (!others.includes(path)) sizeBytes += (await stat(path)).blocks * blockBytes;
  }
  return sizeBytes;
}

/** Room on the disk that the removal of this file or directory gives back: links keep the rest where it is. */
export async function unsharedBytes(path: string): Promise<number> {
  const facts = await stat(path).catch(() => undefined);
  if (!facts) return 0;
  if (!facts.isDirectory()) return facts.nlink === 1 ? facts.blocks * blockBytes : 0;
  const names = await readdir(path).catch(() => []);
  const below = await Promise.all(names.map((name) => unsharedBytes(join(path, name))));
  return below.reduce((sum, bytes) => sum + bytes, 0);
}

async function syncDirectory(dir: string): Promise<void> {
  await using handle = await open(dir, 'r');
  await handle.sync();
}

/** The keys in which two compatibilities differ, as text for the refusal; '' when they are equal. */
export function differences(a: Compatibility, b: Compatibility): string {
  const keys = Object.keys(a) as (keyof Compatibility)[];
  return keys.flatMap((key) => (a[key] === b[key] ? [] : [`${key} ${a[key]} ≠ ${b[key]}`])).join(', ');
}
