// A snapshot's directory, whole and with each of its parts damaged: what the check says, and that it changes nothing.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { snapshotFilesIn } from '../host/paths.ts';
import { testCompatibility, testId, testPage } from './capture-for-tests.ts';
import { writeDeltaRuns } from './delta-runs.ts';
import { recordFormat, type SnapshotRecord, writeRecord } from './record.ts';
import { verifyLocal } from './verify-local.ts';

const memoryBytes = 1024 * 1024;

describe('a check of a local snapshot', () => {
  let root: string;
  let number = 1;
  before(async () => {
    root = await mkdtemp(join(tmpdir(), 'thaw-verify-'));
  });
  after(() => rm(root, { recursive: true, force: true }));

  async function make(form: 'whole' | 'delta') {
    const snapshotId = testId(number++);
    const dir = join(root, snapshotId);
    const files = snapshotFilesIn(dir);
    await mkdir(dir);
    const pagesPath = form === 'whole' ? files.pagesPath : files.basePagesPath;
    await writeFile(pagesPath, testPage(1));
    await truncate(pagesPath, memoryBytes);
    await writeFile(files.devicesPath, testPage(2));
    await writeFile(files.diskPath, testPage(3));
    if (form === 'delta') {
      await writeFile(files.deltaPath, Buffer.concat([testPage(4), testPage(5)]));
      await writeDeltaRuns(files.deltaRunsPath, [{ offsetBytes: 8192, sizeBytes: 8192 }]);
    }
    const record: SnapshotRecord = {
      ...{ format: recordFormat, snapshotId, kind: 'sandbox', names: [], depth: 0, form, dir },
      ...{ nonce: '0'.repeat(32), memoryMb: 1, vcpus: 1, compatibility: testCompatibility },
      ...{ createdAt: new Date(0).toISOString(), sizeBytes: 4096 },
    };
    await writeRecord(dir, record);
    return { dir, files };
  }

  it('finds sound what is sound, in both forms', async () => {
    const whole = await make('whole');
    const before = await readdir(whole.dir);
    const { files, bytes, damaged } = (await verifyLocal(whole.dir))!;
    assert.deepEqual([files, damaged], [4, []]);
    assert.ok(bytes >= 3 * 4096 && bytes < memoryBytes, `${bytes} bytes were read, holes are not`);
    assert.deepEqual(await readdir(whole.dir), before);
    const delta = (await verifyLocal((await make('delta')).dir))!;
    assert.deepEqual([delta.files, delta.damaged], [6, []]);
  });

  it('names what is missing, short or no longer what it was', async () => {
    const broken = async (
      form: 'whole' | 'delta',
      damage: (files: ReturnType<typeof snapshotFilesIn>) => Promise<unknown>,
    ) => {
      const { dir, files } = await make(form);
      await damage(files);
      return (await verifyLocal(dir))!.damaged.map(({ what, reason }) => `${what}: ${reason}`);
    };
    assert.match(
      (await broken('whole', ({ pagesPath }) => truncate(pagesPath, 4096)))[0]!,
      /^pages: 4096 bytes/,
    );
    assert.match((await broken('whole', ({ devicesPath }) => rm(devicesPath)))[0]!, /^devices: ENOENT/);
    assert.match((await broken('whole', ({ diskPath }) => truncate(diskPath, 0)))[0]!, /^disk: empty/);
    assert.match(
      (await broken('delta', ({ deltaPath }) => truncate(deltaPath, 4096)))[0]!,
      /^delta: 4096 bytes/,
    );
    const runs = await broken('delta', ({ deltaRunsPath }) => writeFile(deltaRunsPath, 'nonsense'));
    assert.match(runs[0]!, /^delta: .*damaged/);
    const { dir } = await make('whole');
    await writeFile(join(dir, 'snapshot.json'), '{"format":1}');
    assert.deepEqual((await verifyLocal(dir))!.damaged[0]?.what, 'snapshot.json');
    assert.equal(await verifyLocal(join(root, 'none')), undefined);
  });
});
