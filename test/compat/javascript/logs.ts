// A sandbox's log, in both versions of the route: no client reads it, E2B's own command line does.
import assert from 'node:assert/strict';
import type { Stage } from './scenario.ts';

export default async ({ sandbox, url }: Stage): Promise<void> => {
  const ask = async (path: string) => {
    const answer = await fetch(`${url}${path}`, { headers: { 'x-api-key': process.env.E2B_API_KEY! } });
    assert.equal(answer.status, 200, path);
    return (await answer.json()) as { logs: { timestamp: string; line: string; message: string }[] };
  };
  const { logs: lines } = await ask(`/sandboxes/${sandbox.sandboxId}/logs`);
  assert.ok(lines.length > 0 && JSON.parse(lines[0]!.line).message);
  const { logs: entries } = await ask(`/v2/sandboxes/${sandbox.sandboxId}/logs?direction=backward&limit=1`);
  assert.equal(entries.length, 1);
  assert.ok(entries[0]!.message && !Number.isNaN(Date.parse(entries[0]!.timestamp)));
};
