// Holds docs/compatibility.md to the scenarios and clients there are, and what it leaves out to docs/declared-differences.md.
// Refuses to own whether its marks are true (compatibility.test.ts and compatibility-vms.suite.ts).
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { labelOf } from './install-client.ts';
import { pinnedClients } from './matrix.ts';
import { readPage } from './page.ts';
import { scenarios } from './scenarios.ts';

const differencesPath = join(import.meta.dirname, '../../docs/declared-differences.md');

describe('the page of compatibility', () => {
  it('has a row for each scenario and a column for each client', async () => {
    const page = await readPage();
    const clients = await pinnedClients();
    assert.deepEqual(page.clients, clients.map(labelOf));
    assert.deepEqual(
      page.features,
      scenarios.map(({ feature }) => feature),
    );
    for (const client of clients)
      for (const scenario of scenarios)
        assert.ok(page.statusOf(client, scenario), `${scenario.name} with ${labelOf(client)}`);
  });

  it('says why something did not pass, and the declared differences name it', async () => {
    const page = await readPage();
    const differences = await readFile(differencesPath, 'utf8');
    for (const client of await pinnedClients())
      for (const { name, ...scenario } of scenarios) {
        const status = page.statusOf(client, { name, ...scenario });
        if (status === 'passed') continue;
        const told = page.reasons.some((row) => row.scenario === name && row.status === status && row.reason);
        assert.ok(told, `${name} has a reason`);
        assert.match(differences, new RegExp(`^\\| \`${name}\` \\|`, 'm'), name);
      }
  });

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
});
