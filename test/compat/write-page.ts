// Owns making docs/compatibility.md: every scenario with every pinned client. What needs VMs is tried against the Thaw that
// THAW_TEST_URL and THAW_TEST_API_KEY name, else one of its own; the rest against agents that are processes.
import { writeFile } from 'node:fs/promises';
import { newDataDir, removeDir, startThaw } from '../vm/thaw-process.ts';
import { openCompatWorld } from './compat-world.ts';
import { labelOf } from './install-client.ts';
import { type Column, pinnedClients, type Server, tryClient } from './matrix.ts';
import { pagePath, renderPage } from './page.ts';
import { scenarios } from './scenarios.ts';

async function columnsOf(server: Server, needsVms: boolean): Promise<Column[]> {
  const tried = scenarios.filter((scenario) => scenario.needsVms === needsVms);
  const columns: Column[] = [];
  for (const client of await pinnedClients()) {
    console.log(`… ${labelOf(client)}${needsVms ? ' in VMs' : ''}`);
    columns.push(await tryClient(client, server, tried));
  }
  return columns;
}

async function overProcesses(): Promise<Column[]> {
  const world = await openCompatWorld();
  try {
    return await columnsOf(world, false);
  } finally {
    await world.close();
  }
}

async function inVms(): Promise<Column[]> {
  const { THAW_TEST_URL: apiUrl, THAW_TEST_API_KEY: apiKey } = process.env;
  if (apiUrl !== undefined && apiKey !== undefined) return await columnsOf({ apiUrl, apiKey }, true);
  const dataDir = await newDataDir();
  const thaw = await startThaw(dataDir);
  try {
    return await columnsOf({ apiUrl: thaw.url, apiKey: thaw.apiKey }, true);
  } finally {
    await thaw.end();
    await removeDir(dataDir);
  }
}

const [anywhere, isolated] = [await overProcesses(), await inVms()];
const columns = anywhere.map(({ client, outcomes }, index) => ({
  client,
  outcomes: [...outcomes, ...isolated[index]!.outcomes],
}));
const page = renderPage(columns);
console.log(page);
await writeFile(pagePath, page);
