// What a node gives up besides snapshots when its disk fills up, and what it keeps; and what `thaw doctor` says of the disk.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { pathsOf } from '../../pool/host/paths.ts';
import { testId } from '../../pool/snapshot/capture-for-tests.ts';
import { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import type { StoredSnapshots } from '../../pool/snapshot/stored-snapshots.ts';
import { resolveConfig } from '../../shared/config.ts';
import { silentLog as log } from '../../shared/log.ts';
import { disk } from './commands/doctor.ts';
import { evictionOf } from './disk-room.ts';

const longAgo = new Date(Date.now() - 3_600_000);
/** Every disk is fuller than that. */
const full = { THAW_EVICT_ABOVE_PERCENT: '1', THAW_EVICT_TO_PERCENT: '0' };

describe('room on a disk that fills up', () => {
  let dataDir: string;
  let library: SnapshotLibrary;
  beforeEach(async () => {
    dataDir = await mkdtemp(join(tmpdir(), 'thaw-room-'));
    const { snapshotsDir, keptDir, spoolDir } = pathsOf(dataDir);
    for (const dir of [snapshotsDir, keptDir, join(spoolDir, testId(1)), join(spoolDir, testId(2))])
      await mkdir(dir, { recursive: true });
    library = new SnapshotLibrary({ paths: pathsOf(dataDir), log });
    for (const number of [1, 2]) await writeFile(join(spoolDir, testId(number), 'segment-0'), 'x');
    for (const name of [testId(1), `${testId(2)}.partial`, testId(3)]) {
      const path = join(keptDir, name);
      await writeFile(path, 'x');
      if (name !== testId(3)) await utimes(path, longAgo, longAgo);
    }
  });
  afterEach(() => rm(dataDir, { recursive: true, force: true }));

  const configOf = (env: Record<string, string>) => resolveConfig({ env, defaults: { dataDir } }).config;
  async function sweep(stored: StoredSnapshots | undefined): Promise<number> {
    let asked = 0;
    const dropUploads = async () => ++asked;
    const paths = pathsOf(dataDir);
    const inUse = () => new Set<string>();
    await evictionOf({ config: configOf(full), paths, log, library, stored, inUse, dropUploads }).sweep();
    return asked;
  }
  const left = async () => ({
    kept: (await readdir(pathsOf(dataDir).keptDir)).sort(),
    spooled: (await readdir(pathsOf(dataDir).spoolDir)).sort(),
  });

  it('comes of page files and segments that nobody works with, and of old uploads', async () => {
    const hold = library.use.hold(testId(1));
    const stored = { publishing: testId(2) } as StoredSnapshots;
    assert.equal(await sweep(stored), 1);
    assert.deepEqual(await left(), { kept: [testId(1), testId(3)], spooled: [testId(2)] });
    hold[Symbol.dispose]();
    await sweep(stored);
    assert.deepEqual(await left(), { kept: [testId(3)], spooled: [testId(2)] });
  });

  it('comes of all segments on their way where no store is configured any more', async () => {
    await sweep(undefined);
    assert.deepEqual((await left()).spooled, []);
  });

  it('is what doctor looks at: it warns, and says what becomes of it', async () => {
    const found = async (env: Record<string, string>) => {
      const { state, detail } = await disk(configOf({ THAW_MIN_FREE_DISK_MB: '0', ...env }));
      return `${state}: ${detail}`;
    };
    assert.match(
      await found({ ...full }),
      /^warn: .* % in use, above 1 %: nothing is evicted without a store/,
    );
    assert.match(await found({ ...full, THAW_STORE: 'file:///s' }), /^warn: .* is evicted, down to 0 %/);
    assert.match(await found({ THAW_EVICT_ABOVE_PERCENT: '100' }), /^ok: .* MB free for .* % in use$/);
    assert.match(await found({ THAW_MIN_FREE_DISK_MB: '16777216' }), /^fail: .*at least 16777216 MB/);
  });
});
