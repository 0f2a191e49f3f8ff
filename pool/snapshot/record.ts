// Owns the record of a local snapshot: what a restore must know, written last, so that a directory with a record is
// a whole snapshot and one without is garbage. The stored form across nodes is a later layer's.
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { snapshotIdPattern } from '../../shared/ids.ts';
import type { Compatibility } from '../hypervisor/hypervisor.ts';

export const recordFormat = 1;

const recordSchema = Type.Object({
  format: Type.Literal(recordFormat),
  snapshotId: Type.String({ pattern: snapshotIdPattern.source }),
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
});

export type SnapshotRecord = Static<typeof recordSchema>;

/** @returns undefined when there is no whole, readable record in `dir`. */
export async function readRecord(dir: string): Promise<SnapshotRecord | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(join(dir, 'snapshot.json'), 'utf8'));
    return Value.Check(recordSchema, value) && value.dir === dir ? value : undefined;
  } catch {
    return undefined;
  }
}

export async function writeRecord(dir: string, record: SnapshotRecord): Promise<void> {
  const path = join(dir, 'snapshot.json');
  await writeFile(`${path}.partial`, JSON.stringify(record), { flush: true, mode: 0o600 });
  await rename(`${path}.partial`, path);
}

/** The keys in which two compatibilities differ, as text for the refusal; '' when they are equal. */
export function differences(a: Compatibility, b: Compatibility): string {
  const keys = Object.keys(a) as (keyof Compatibility)[];
  return keys.flatMap((key) => (a[key] === b[key] ? [] : [`${key} ${a[key]} ≠ ${b[key]}`])).join(', ');
}
