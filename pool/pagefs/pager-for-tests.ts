// Owns a pager program for tests: images out of image-for-tests.ts, `manifestPath` being their number of pages.
import { TestReader, testImage } from './image-for-tests.ts';
import type { PagerSettings } from './run-pager.ts';
import { runPager } from './run-pager.ts';

await runPager<PagerSettings & { delayMs?: number }>(async ({ delayMs = 0 }) => ({
  load: async (_, manifestPath) => {
    const made = testImage(Number(manifestPath));
    const reader = new TestReader(made);
    reader.delayMs = delayMs;
    return { image: made.image, frames: made.frames, reader };
  },
}));
