// Owns a test for one client: what it does now is what docs/compatibility.md says.
// Invariant: the page's marks and a run's differ in nothing, or the test says in what.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { it } from 'node:test';
import { type Client, installClient, labelOf } from './install-client.ts';
import { type Outcome, renderTable, type Server, tryClient } from './matrix.ts';
import type { Scenario } from './scenarios.ts';

const pagePath = join(import.meta.dirname, '../../docs/compatibility.md');

export function holdToPage(client: Client, tried: readonly Scenario[], server: () => Server): void {
  it(labelOf(client), async (t) => {
    const refusal = await installClient(client).then(
      () => undefined,
      (error: Error) => error.message,
    );
    if (refusal !== undefined) return t.skip(`cannot be installed: ${refusal}`);
    const column = await tryClient(client, server(), tried);
    const page = await readFile(pagePath, 'utf8');
    const expected = tried.map((scenario) => marked(page, client, scenario));
    const found = column.outcomes.map(({ scenario, status }) => `${scenario} ${status}`);
    assert.deepEqual(found, expected, renderTable([column], tried));
  });
}

const statuses: Record<string, Outcome['status']> = { '✓': 'passed', '✗': 'failed', '–': 'skipped' };

function marked(page: string, client: Client, { name, feature }: Scenario): string {
  const cellsOf = (start: string) =>
    page
      .split('\n')
      .find((line) => line.startsWith(start))
      ?.split('|')
      .map((cell) => cell.trim());
  const column = cellsOf('| |')?.indexOf(labelOf(client)) ?? -1;
  return `${name} ${statuses[cellsOf(`| ${feature} |`)?.[column] ?? '']}`;
}
