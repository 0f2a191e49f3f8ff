// Owns a test for one client: what it does now is what docs/compatibility.md says.
// Invariant: the page's marks and a run's differ in nothing, or the test says in what.
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { type Client, installClient, labelOf } from './install-client.ts';
import { type Server, tryClient } from './matrix.ts';
import { readPage, renderTable } from './page.ts';
import type { Scenario } from './scenarios.ts';

export function holdToPage(client: Client, tried: readonly Scenario[], server: () => Server): void {
  it(labelOf(client), async (t) => {
    const refusal = await installClient(client).then(
      () => undefined,
      (error: Error) => error.message,
    );
    if (refusal !== undefined) return t.skip(`cannot be installed: ${refusal}`);
    const column = await tryClient(client, server(), tried);
    const page = await readPage();
    const expected = tried.map((scenario) => `${scenario.name} ${page.statusOf(client, scenario)}`);
    const found = column.outcomes.map(({ scenario, status }) => `${scenario} ${status}`);
    assert.deepEqual(found, expected, renderTable([column], tried));
  });
}
