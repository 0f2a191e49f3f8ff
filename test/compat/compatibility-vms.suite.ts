// Holds unmodified clients to what docs/compatibility.md says of them where a VM is needed: the oldest and the newest of
// each language.
import { after, before, describe } from 'node:test';
import { newDataDir, removeDir, startThaw, type ThawProcess } from '../vm/thaw-process.ts';
import { holdToPage } from './hold-to-page.ts';
import { pinnedClients } from './matrix.ts';
import { scenarios } from './scenarios.ts';

let thaw: ThawProcess;
let dataDir: string;
before(async () => {
  dataDir = await newDataDir();
  thaw = await startThaw(dataDir);
});
after(async () => {
  await thaw?.end();
  await removeDir(dataDir);
});

describe('compatibility of clients in real VMs', async () => {
  const tried = scenarios.filter(({ needsVms }) => needsVms);
  const clients = await pinnedClients();
  for (const kind of ['npm', 'pypi'] as const) {
    const versions = clients.filter((client) => client.kind === kind);
    for (const client of new Set([versions.at(0)!, versions.at(-1)!]))
      holdToPage(client, tried, () => ({ apiUrl: thaw.url, apiKey: thaw.apiKey }));
  }
});
