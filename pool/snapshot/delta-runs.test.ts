// Tests the file of a delta's places: what is written is read, and nothing damaged is.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { readDeltaRuns, writeDeltaRuns } from './delta-runs.ts';

const memoryBytes = 1024 * 4096;
const page = (first: number, count: number) => ({ offsetBytes: first * 4096, sizeBytes: count * 4096 });

describe('runs of a delta', () => {
  let dir: string;
  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-runs-'));
  });
  after(() => rm(dir, { recursive: true, force: true }));

  it('are read as they were written', async () => {
    for (const [index, runs] of [[], [page(0, 1024)], [page(1, 1), page(3, 7), page(1023, 1)]].entries()) {
      const path = join(dir, `good-${index}`);
      await writeDeltaRuns(path, runs);
      assert.deepEqual(await readDeltaRuns(path, memoryBytes), runs);
      await assert.rejects(writeDeltaRuns(path, runs), { code: 'EEXIST' });
    }
  });

  it('are refused when damaged', async () => {
    const bad = {
      descending: [page(5, 1), page(3, 1)],
      overlapping: [page(5, 2), page(6, 1)],
      empty: [page(5, 0)],
      beyond: [page(1023, 2)],
    };
    for (const [name, runs] of Object.entries(bad)) {
      await writeDeltaRuns(join(dir, name), runs);
      await assert.rejects(readDeltaRuns(join(dir, name), memoryBytes), { code: 'restore-failed' }, name);
    }
    for (const bytes of ['', 'THAWRUN', 'THAWRUN2', 'THAWRUN1xxx', 'THAWRUN1xxxxxxxxx']) {
      await writeFile(join(dir, 'noise'), bytes);
      await assert.rejects(readDeltaRuns(join(dir, 'noise'), memoryBytes), { code: 'restore-failed' }, bytes);
    }
  });
});
