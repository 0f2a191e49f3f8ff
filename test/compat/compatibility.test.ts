// Holds unmodified clients of several versions to what docs/compatibility.md says of them, as far as no VM is needed.
// Needs the registries once; what could not be installed is skipped with the installer's words.
import { after, before, describe } from 'node:test';
import { openCompatWorld } from './compat-world.ts';
import { holdToPage } from './hold-to-page.ts';
import { pinnedClients, type Server } from './matrix.ts';
import { scenarios } from './scenarios.ts';

let world: Server & { close(): Promise<unknown> };
before(async () => {
  world = await openCompatWorld();
});
after(() => world?.close());

describe('compatibility of clients', { concurrency: 2 }, async () => {
  const tried = scenarios.filter(({ needsVms }) => !needsVms);
  for (const client of await pinnedClients()) holdToPage(client, tried, () => world);
});
