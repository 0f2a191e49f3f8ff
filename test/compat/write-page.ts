// Owns making docs/compatibility.md: every scenario with every pinned client, against the Thaw that THAW_TEST_URL and
// THAW_TEST_API_KEY name, else one of its own with real VMs.
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { newDataDir, removeDir, startThaw } from '../vm/thaw-process.ts';
import { labelOf } from './install-client.ts';
import { type Column, pinnedClients, renderPage, type Server, tryClient } from './matrix.ts';
import { scenarios } from './scenarios.ts';

async function writePage(server: Server): Promise<void> {
  const columns: Column[] = [];
  for (const client of await pinnedClients()) {
    console.log(`… ${labelOf(client)}`);
    columns.push(await tryClient(client, server, scenarios));
  }
  const page = renderPage(columns);
  console.log(page);
  await writeFile(join(import.meta.dirname, '../../docs/compatibility.md'), page);
}

const { THAW_TEST_URL: apiUrl, THAW_TEST_API_KEY: apiKey } = process.env;
if (apiUrl !== undefined && apiKey !== undefined) await writePage({ apiUrl, apiKey });
else {
  const dataDir = await newDataDir();
  const thaw = await startThaw(dataDir);
  try {
    await writePage({ apiUrl: thaw.url, apiKey: thaw.apiKey });
  } finally {
    await thaw.end();
    await removeDir(dataDir);
  }
}
