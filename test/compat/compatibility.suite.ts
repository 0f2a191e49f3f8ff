// Holds unmodified clients of several versions to what docs/compatibility.md says of them, as far as no VM is needed.
// Needs the registries once; what could not be installed is skipped with the installer's words.
import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { openSdkWorld, type SdkWorld } from '../sdk/sdk-world.ts';
import { holdToPage } from './hold-to-page.ts';
import { pinnedClients } from './matrix.ts';
import { scenarios } from './scenarios.ts';

let world: SdkWorld;
before(async () => {
  world = await openSdkWorld();
});
after(() => world.close());

describe('compatibility of clients', { concurrency: 2 }, async () => {
  it('has one scenario for each feature in each language', async () => {
    const names = scenarios.map(({ name }) => name).sort();
    for (const [language, suffix] of [
      ['javascript', '.ts'],
      ['python', '.py'],
    ] as const) {
      const files = await readdir(join(import.meta.dirname, language));
      const shared = ['run', 'scenario', '__pycache__'];
      const found = files.map((file) => file.replace(suffix, '')).filter((name) => !shared.includes(name));
      assert.deepEqual(found.sort(), names, language);
    }
  });

  const tried = scenarios.filter(({ needsVms }) => !needsVms);
  for (const client of await pinnedClients()) holdToPage(client, tried, () => world);
});
