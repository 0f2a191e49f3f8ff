// A crash at any change that a node makes to its snapshots leaves each of them whole or not there, after the next start.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import { silentLog as log } from '../../shared/log.ts';
import { type Paths, pathsOf, snapshotFilesIn } from '../host/paths.ts';
import { reclaim } from '../host/reclaim.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { flatDiskCompatibility, testImage, testKey, wholeCapture } from './capture-for-tests.ts';
import { changedPage, deedId, deeds } from './deeds-for-tests.ts';
import { writeDeltaRuns } from './delta-runs.ts';
import { dyingAt } from './dying-for-tests.ts';
import { Publisher } from './publish.ts';
import { readRecord, recordFormat, type SnapshotRecord, writeRecord } from './record.ts';
import { verifyLocal } from './verify-local.ts';

const maxChanges = 40;
type Deed = keyof typeof deeds;
const image = testImage(1);

describe('snapshots, when a crash interrupts them at any change,', () => {
  let dir: string;
  let storeDir: string;

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-crash-'));
    storeDir = join(dir, 'store');
    const store = await DirectoryStore.open(storeDir);
    const spoolDir = join(dir, 'spool');
    const publisher = await Publisher.open({
      store,
      clusterKey: testKey,
      spoolDir,
      threads: 1,
      reserveBytes: 0,
    });
    const capture = await wholeCapture(join(dir, 'capture'), 1, image);
    await publisher.publish({ ...capture, compatibility: flatDiskCompatibility });
    await publisher.close();
  });
  after(() => rm(dir, { recursive: true, force: true }));

  const recordOf = (paths: Paths, more: Partial<SnapshotRecord>): SnapshotRecord => ({
    ...{ format: recordFormat, snapshotId: deedId, kind: 'sandbox', names: [], depth: 0, form: 'whole' },
    ...{ dir: paths.snapshotDir(deedId), nonce: '1'.repeat(32), memoryMb: 4, vcpus: 1 },
    compatibility: flatDiskCompatibility,
    ...{ createdAt: new Date(0).toISOString(), sizeBytes: 4096 },
    ...more,
  });

  /** A snapshot in the form that the deed begins with. */
  async function prepare(dataDir: string, deed: Deed): Promise<void> {
    const paths = pathsOf(dataDir);
    await mkdir(paths.snapshotsDir, { recursive: true });
    await writeFile(join(dataDir, 'blank'), Buffer.alloc(image.disk.length));
    if (deed.startsWith('arrive')) return;
    const files = snapshotFilesIn(paths.snapshotDir(deedId));
    await mkdir(paths.snapshotDir(deedId));
    await writeFile(files.devicesPath, image.devices);
    await writeFile(files.diskPath, image.disk);
    if (deed === 'becomeWhole') {
      await mkdir(paths.keptDir);
      await writeFile(join(paths.keptDir, deedId), image.memory);
      await writeFile(files.manifestPath, 'of no interest here');
      await writeRecord(paths.snapshotDir(deedId), recordOf(paths, { form: 'paged' }));
    } else if (deed === 'materialise') {
      await writeFile(files.basePagesPath, image.memory);
      await writeFile(files.deltaPath, changedPage);
      await writeDeltaRuns(files.deltaRunsPath, [{ offsetBytes: 0, sizeBytes: changedPage.length }]);
      await writeRecord(paths.snapshotDir(deedId), recordOf(paths, { form: 'delta', base: deedId }));
    } else {
      await writeFile(files.pagesPath, image.memory);
      await writeRecord(paths.snapshotDir(deedId), recordOf(paths, {}));
    }
  }

  /** By its record, whatever else is in the directory. */
  async function memoryOf(record: SnapshotRecord): Promise<Buffer | undefined> {
    const files = snapshotFilesIn(record.dir);
    if (record.form === 'paged') return undefined;
    if (record.form === 'whole') return await readFile(files.pagesPath);
    const memory = await readFile(files.basePagesPath);
    (await readFile(files.deltaPath)).copy(memory);
    return memory;
  }

  const changed = Buffer.concat([changedPage, image.memory.subarray(changedPage.length)]);

  /** As the next start finds them. @returns their forms, by id. */
  async function assertWhole(dataDir: string, deed: Deed): Promise<string[]> {
    const paths = pathsOf(dataDir);
    await reclaim({ paths, log });
    const found: string[] = [];
    for (const name of (await readdir(paths.snapshotsDir)).sort()) {
      const record = await readRecord(paths.snapshotDir(name));
      assert.ok(record, `${name} has a record`);
      assert.deepEqual((await verifyLocal(record.dir))?.damaged, [], name);
      const isChanged = deed === 'materialise' || record.names.includes('captured');
      const memory = await memoryOf(record);
      if (memory) assert.ok(memory.equals(isChanged ? changed : image.memory), `${name}: its memory`);
      found.push(record.names.includes('captured') ? 'captured' : record.form);
    }
    return found;
  }

  async function tryStep(deed: Deed, step: number): Promise<{ died: boolean; found: string }> {
    const dataDir = join(dir, `${Object.keys(deeds).indexOf(deed)}-${step}`);
    await prepare(dataDir, deed);
    const outcome = await dyingAt(step, () => deeds[deed](dataDir, storeDir));
    const found = (await assertWhole(dataDir, deed)).sort().join();
    // What is left is in nobody's way: where it has not come about, it does when it is tried again.
    if (found !== outcomes[deed][1]) {
      await deeds[deed](dataDir, storeDir);
      assert.equal((await assertWhole(dataDir, deed)).sort().join(), outcomes[deed][1]);
    }
    await rm(dataDir, { recursive: true });
    return { died: outcome === 'died', found };
  }

  /** Forms of what is there before and after. */
  const outcomes: Record<Deed, [before: string, after: string]> = {
    arrivePaged: ['', 'paged'],
    arriveWhole: ['', 'whole'],
    becomeWhole: ['paged', 'whole'],
    materialise: ['delta', 'whole'],
    capture: ['whole', 'captured,whole'],
    evict: ['whole', ''],
    remove: ['whole', ''],
  };

  async function atEveryChange(t: TestContext, deed: Deed): Promise<void> {
    const [first, last] = outcomes[deed];
    const seen: string[] = [];
    for (let step = 0, died = true; died; step++) {
      assert.ok(step < maxChanges, 'it comes to its end at last');
      const tried = await tryStep(deed, step);
      seen.push(tried.found);
      died = tried.died;
    }
    t.diagnostic(`${seen.length - 1} changes: ${seen.map((found) => found || 'nothing').join(', ')}`);
    const turn = seen.indexOf(last);
    assert.ok(turn >= 0 && seen.slice(0, turn).every((found) => found === first), 'what was, up to a step');
    assert.ok(
      seen.slice(turn).every((found) => found === last),
      'and from there on what is to be',
    );
  }

  it('row 22: are captured in one step', (t) => atEveryChange(t, 'capture'));
  it('row 22: come from the store in one step, but for their memory', (t) => atEveryChange(t, 'arrivePaged'));
  it('row 22: come from the store in one step, with their memory', (t) => atEveryChange(t, 'arriveWhole'));
  it('become whole in one step when all of their memory has come', (t) => atEveryChange(t, 'becomeWhole'));
  it('get a page file of their own in one step', (t) => atEveryChange(t, 'materialise'));
  it('are evicted in one step', (t) => atEveryChange(t, 'evict'));
  it('are removed in one step', (t) => atEveryChange(t, 'remove'));
});
