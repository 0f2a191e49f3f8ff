// Owns a pager program for tests: images out of image-for-tests.ts. `manifestPath` is their number of pages, or names a
// file that says it and what goes wrong, as TestManifest.
import { readFile } from 'node:fs/promises';
import { TestReader, testImage } from './image-for-tests.ts';
import type { PagerSettings } from './run-pager.ts';
import { runPager } from './run-pager.ts';

export interface TestManifest {
  pages: number;
  /** No frame can be had. */
  failing?: 'store-unavailable' | 'snapshot-damaged';
}

await runPager<PagerSettings & { delayMs?: number }>(async ({ delayMs = 0 }) => ({
  load: async (_, manifestPath) => {
    const { pages, failing } = await manifestOf(manifestPath);
    const made = testImage(pages);
    const reader = new TestReader(made);
    reader.delayMs = delayMs;
    if (failing) reader.failing.set('all', failing);
    return { image: made.image, frames: made.frames, reader };
  },
}));

async function manifestOf(manifestPath: string): Promise<TestManifest> {
  if (/^\d+$/.test(manifestPath)) return { pages: Number(manifestPath) };
  return JSON.parse(await readFile(manifestPath, 'utf8')) as TestManifest;
}
