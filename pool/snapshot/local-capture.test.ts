import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { copyFile, link, mkdir, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { snapshotFilesIn } from '../host/paths.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { testCompatibility, testId, testImage, testKey, testPage } from './capture-for-tests.ts';
import { writeDeltaRuns } from './delta-runs.ts';
import { pageBytes } from './extents.ts';
import { FrameReader, storeTier } from './frame-reader.ts';
import { localCaptureOf, united, within } from './local-capture.ts';
import type { Manifest } from './manifest.ts';
import { materialise } from './materialise-image.ts';
import { Publisher } from './publish.ts';
import { recordFormat, type SnapshotRecord } from './record.ts';

const run = promisify(execFile);
const hasQemu = await run('qemu-img', ['--version']).then(
  () => true,
  () => false,
);
const skip = hasQemu ? false : 'qemu-img is not installed: apt-get install qemu-utils';

describe('a local snapshot, published', { skip }, () => {
  let dir: string;
  let store: DirectoryStore;
  let publisher: Publisher;
  let blankPath: string;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-local-'));
    store = await DirectoryStore.open(join(dir, 'store'));
    const options = { store, clusterKey: testKey, spoolDir: join(dir, 'spool'), threads: 1, reserveBytes: 0 };
    publisher = await Publisher.open(options);
    blankPath = join(dir, 'blank');
    await writeFile(blankPath, testPage(1));
    await truncate(blankPath, 8 << 20);
  });
  after(async () => {
    await publisher.close();
    await rm(dir, { recursive: true, force: true });
  });

  const recordOf = async (number: number, rest: Partial<SnapshotRecord>): Promise<SnapshotRecord> => {
    const snapshotDir = join(dir, `local-${number}`);
    await mkdir(snapshotDir);
    await writeFile(snapshotFilesIn(snapshotDir).devicesPath, testPage(number));
    return {
      format: recordFormat,
      snapshotId: testId(number),
      kind: 'sandbox',
      names: [],
      depth: 0,
      form: 'whole',
      dir: snapshotDir,
      nonce: String(number).padStart(32, '0'),
      memoryMb: 4,
      vcpus: 1,
      compatibility: testCompatibility,
      createdAt: new Date(1_700_000_000_000).toISOString(),
      sizeBytes: 0,
      ...rest,
    };
  };
  const makeDisk = async (path: string, backing: string, format: string, commands: string[]) => {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', backing, '-F', format, path]);
    await run('qemu-io', [...commands.flatMap((command) => ['-c', command]), path]);
    await run('qemu-img', ['convert', '-O', 'raw', path, `${path}.raw`]);
    return readFile(`${path}.raw`);
  };
  const wholeOf = async (number: number, memory: Buffer, rest: Partial<SnapshotRecord> = {}) => {
    const record = await recordOf(number, rest);
    await writeFile(snapshotFilesIn(record.dir).pagesPath, memory);
    return record;
  };
  /** What `memory` has changed since `base`, and also, unchanged, the pages in `also`. */
  const deltaOf = async (number: number, memory: Buffer, base: SnapshotRecord, dirty: number[]) => {
    const record = await recordOf(number, { form: 'delta', base: base.snapshotId, dirtyPages: dirty.length });
    const files = snapshotFilesIn(record.dir);
    await link(snapshotFilesIn(base.dir).pagesPath, files.basePagesPath);
    const runs = dirty.map((page) => ({ offsetBytes: page * pageBytes, sizeBytes: pageBytes }));
    const pages = dirty.map((page) => memory.subarray(page * pageBytes, (page + 1) * pageBytes));
    await writeFile(files.deltaPath, Buffer.concat(pages));
    await writeDeltaRuns(files.deltaRunsPath, runs);
    return record;
  };
  const assertHolds = async (manifest: Manifest, memory: Buffer, disk: Buffer) => {
    const reader = new FrameReader({ manifest, tiers: [storeTier(store)] });
    for (const [name, bytes] of [
      ['memory', memory],
      ['disk', disk],
    ] as const) {
      const path = join(dir, 'materialised');
      await materialise(manifest, name, reader, path);
      assert.ok((await readFile(path)).equals(bytes), `${name} of ${manifest.snapshotId}`);
      await rm(path);
    }
  };

  it('comes back in every form: template, function, delta of the template, delta of another delta', async () => {
    const { memory } = testImage(1);
    const template = await wholeOf(1, memory);
    const templateDiskPath = snapshotFilesIn(template.dir).diskPath;
    const templateDisk = await makeDisk(templateDiskPath, blankPath, 'raw', ['write -P 1 1M 64k']);
    const first = await publisher.publish(await localCaptureOf(template));
    await assertHolds(first.manifest, memory, templateDisk);

    const functionMemory = Buffer.from(memory);
    testPage(500).copy(functionMemory, 0);
    functionMemory.fill(0, 16 * pageBytes, 18 * pageBytes);
    const version = await wholeOf(2, functionMemory, { kind: 'function', parent: template.snapshotId });
    const versionDiskPath = snapshotFilesIn(version.dir).diskPath;
    const versionDisk = await makeDisk(versionDiskPath, blankPath, 'raw', [
      'write -P 1 1M 64k',
      'write -z 1M 4k',
      'write -P 2 3M 4k',
    ]);
    const second = await publisher.publish(await localCaptureOf(version, template));
    assert.equal(second.manifest.parentId, template.snapshotId);
    assert.ok(second.manifest.addedBytes < first.manifest.addedBytes / 20);
    await assertHolds(second.manifest, functionMemory, versionDisk);

    const a = Buffer.from(memory);
    for (const page of [4, 5, 100]) testPage(9_000 + page).copy(a, page * pageBytes);
    const deltaA = await deltaOf(3, a, template, [4, 5, 6, 100]);
    const filesA = snapshotFilesIn(deltaA.dir);
    await link(templateDiskPath, filesA.baseDiskPath);
    const diskA = await makeDisk(filesA.diskPath, filesA.baseDiskPath, 'qcow2', ['write -P 7 2M 64k']);
    const third = await publisher.publish(await localCaptureOf(deltaA, template));
    assert.deepEqual(third.pages.equalToParent >= 1, true, 'page 6 was written to and is as before');
    await assertHolds(third.manifest, a, diskA);

    // Page 5 is as in the template again, and this delta does not even name it.
    const b = Buffer.from(a);
    memory.copy(b, 5 * pageBytes, 5 * pageBytes, 6 * pageBytes);
    testPage(12_345).copy(b, 200 * pageBytes);
    const deltaB = await deltaOf(4, b, template, [4, 100, 200]);
    const filesB = snapshotFilesIn(deltaB.dir);
    await link(templateDiskPath, filesB.baseDiskPath);
    const diskB = await makeDisk(filesB.diskPath, filesB.baseDiskPath, 'qcow2', ['write -P 8 5M 64k']);
    const fourth = await publisher.publish(await localCaptureOf(deltaB, deltaA));
    assert.equal(fourth.manifest.parentId, deltaA.snapshotId);
    assert.equal(fourth.manifest.facts.dirtyPages, 3);
    assert.ok(fourth.pages.stored < 25, `${fourth.pages.stored} pages stored`);
    await assertHolds(fourth.manifest, b, diskB);

    const alone = await localCaptureOf({ ...deltaB, snapshotId: testId(5) });
    assert.equal(alone.parentId, undefined);
    await assertHolds((await publisher.publish(alone)).manifest, b, diskB);
  });

  it('stands for itself when its parent is of another size', async () => {
    const { memory } = testImage(8, 8);
    const big = await wholeOf(10, memory, { memoryMb: 8 });
    const path = snapshotFilesIn(big.dir).diskPath;
    const disk = await makeDisk(path, blankPath, 'raw', ['write -P 1 1M 64k']);
    const small = await wholeOf(11, testImage(9).memory);
    await copyFile(path, snapshotFilesIn(small.dir).diskPath);
    const capture = await localCaptureOf(big, small);
    assert.equal(capture.parentId, undefined);
    await assertHolds((await publisher.publish(capture)).manifest, memory, disk);
  });
});

describe('stretches', () => {
  const stretches = fc.array(
    fc.record({ offsetBytes: fc.nat(60), sizeBytes: fc.integer({ min: 1, max: 9 }) }),
    { maxLength: 12 },
  );
  const cellsOf = (list: readonly { offsetBytes: number; sizeBytes: number }[]) =>
    new Set(
      list.flatMap(({ offsetBytes, sizeBytes }) =>
        Array.from({ length: sizeBytes }, (_, i) => offsetBytes + i),
      ),
    );

  it('are united and cut as cell by cell', () => {
    fc.assert(
      fc.property(stretches, stretches, (a, b) => {
        const [runs, scope] = [united(a), united(b)];
        assert.deepEqual([...cellsOf(runs)].sort(), [...cellsOf(a)].sort());
        const cut = within(
          runs.map((stretch) => ({ ...stretch, fileOffsetBytes: stretch.offsetBytes + 1000 })),
          scope,
        );
        for (const part of cut) assert.equal(part.fileOffsetBytes, part.offsetBytes + 1000);
        const both = [...cellsOf(runs)].filter((cell) => cellsOf(scope).has(cell));
        assert.deepEqual([...cellsOf(cut)].sort(), both.sort());
      }),
    );
  });
});
