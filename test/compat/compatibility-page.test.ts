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

  it('shows no failure', async () => {
    const page = await readPage();
    assert.deepEqual(
      page.reasons.filter(({ status }) => status === 'failed'),
      [],
    );
  });

  it('skips nothing without a reason, and nothing that the declared differences do not name', async () => {
    const page = await readPage();
    const differences = await readFile(differencesPath, 'utf8');
    for (const client of await pinnedClients())
      for (const scenario of scenarios) {
        if (page.statusOf(client, scenario) !== 'skipped') continue;
        const told = page.reasons.some(
          ({ scenario: name, reason }) => name === scenario.name && reason !== '',
        );
        assert.ok(told, `${scenario.name} has a reason`);
        assert.match(differences, new RegExp(`^\\| \`${scenario.name}\` \\|`, 'm'), scenario.name);
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
