import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { silentLog as log } from '../shared/log.ts';
import { pathsOf } from './host/paths.ts';
import type { Compatibility, GuestImage, Hypervisor } from './hypervisor/hypervisor.ts';
import { testCompatibility as ours, testId } from './snapshot/capture-for-tests.ts';
import { recordFormat, type SnapshotRecord, writeRecord } from './snapshot/record.ts';
import { LocalVmFactory } from './vm-factory.ts';

describe('a snapshot that a node is asked to restore', () => {
  let dir: string;
  let factory: LocalVmFactory;
  let restores = 0;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-factory-'));
    const hypervisor = {
      compatibility: async () => ours,
      restore: async () => {
        restores++;
        throw new Error('nothing may get here');
      },
    } as unknown as Hypervisor;
    factory = new LocalVmFactory({ hypervisor, image: {} as GuestImage, paths: pathsOf(dir), log });
  });
  after(() => rm(dir, { recursive: true, force: true }));

  async function save(number: number, compatibility: Compatibility): Promise<string> {
    const snapshotId = testId(number);
    const snapshotDir = pathsOf(dir).snapshotDir(snapshotId);
    await mkdir(snapshotDir, { recursive: true });
    const record: SnapshotRecord = {
      ...{ format: recordFormat, snapshotId, kind: 'sandbox', names: [], depth: 0, form: 'whole' },
      ...{ dir: snapshotDir, nonce: '0'.repeat(32), memoryMb: 4, vcpus: 1, compatibility },
      ...{ createdAt: new Date(0).toISOString(), sizeBytes: 0 },
    };
    await writeRecord(snapshotDir, record);
    return snapshotId;
  }

  it('row 28: is refused with the reason when another VMM, version, machine, CPU or image made it, and never tried', async () => {
    assert.equal((await factory.load(await save(1, ours))).snapshotId, testId(1));
    for (const [index, key] of (Object.keys(ours) as (keyof Compatibility)[]).entries()) {
      const snapshotId = await save(10 + index, { ...ours, [key]: 'another' });
      const refused = { code: 'incompatible', message: new RegExp(`${key} another ≠ ${ours[key]}`) };
      await assert.rejects(factory.load(snapshotId), refused);
      await assert.rejects(factory.restore(snapshotId, AbortSignal.timeout(1_000)), refused);
    }
    assert.equal(restores, 0);
  });
});
