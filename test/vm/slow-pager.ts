// Owns a pager program whose store takes its time before the first byte, as a store far away does.
import { setTimeout as delay } from 'node:timers/promises';
import { runPager } from '../../pool/pagefs/run-pager.ts';
import { type ImageSettings, openImages } from '../../services/pager/images.ts';

await runPager<ImageSettings & { firstByteMs: number }>((settings) =>
  openImages(settings, (tier) => ({
    name: tier.name,
    read: async (...request) => {
      await delay(settings.firstByteMs);
      return tier.read(...request);
    },
  })),
);
