// Measures listing: 200 sandboxes, all pages, over HTTP, as a client asks for them.
import assert from 'node:assert/strict';
import { after, before, it } from 'node:test';
import { type GatewayForTests, startGateway } from '../gateway-for-tests.ts';

const sandboxCount = 200;
const limitMs = 50;
const runs = 21;

let gateway: GatewayForTests;
before(async () => {
  gateway = await startGateway();
  for (let made = 0; made < sandboxCount; made++) {
    const metadata = { index: String(made), owner: 'a user with a name', purpose: 'listing' };
    const answer = await gateway.call('/v2/sandboxes', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ templateID: 'base', metadata, envVars: { A: 'x'.repeat(1_000) } }),
    });
    assert.equal(answer.status, 201);
  }
});
after(() => gateway.close());

async function listAll(query: string): Promise<string[]> {
  const ids: string[] = [];
  for (let token: string | null = ''; token !== null; ) {
    const answer: Response = await gateway.call(`/v2/sandboxes?${query}${token && `&nextToken=${token}`}`);
    token = answer.headers.get('x-next-token');
    ids.push(...((await answer.json()) as { sandboxID: string }[]).map(({ sandboxID }) => sandboxID));
  }
  return ids;
}

it(`lists ${sandboxCount} sandboxes within ${limitMs} ms`, async (context) => {
  for (const query of ['', 'metadata=purpose%3Dlisting&state=running,paused&order=asc']) {
    const timesMs: number[] = [];
    for (let run = 0; run < runs; run++) {
      const startedAtMs = performance.now();
      const ids = await listAll(query);
      timesMs.push(performance.now() - startedAtMs);
      assert.equal(new Set(ids).size, sandboxCount);
    }
    timesMs.sort((a, b) => a - b);
    const medianMs = timesMs[(runs - 1) / 2]!;
    context.diagnostic(
      `median ${medianMs.toFixed(1)} ms, most ${timesMs.at(-1)!.toFixed(1)} ms, n ${runs} (${query})`,
    );
    assert.ok(medianMs < limitMs, `median ${medianMs} ms`);
  }
});
