// Tests the metrics of several sandboxes in one answer, as real agents measure themselves.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Cleanup } from '../../shared/cleanup.ts';
import { type SdkWorld, startAgentGateway } from '../sdk/sdk-world.ts';

const cleanup = new Cleanup();
let world: SdkWorld;
before(async () => {
  world = await startAgentGateway(cleanup);
});
after(() => cleanup.run());

const call = (path: string, method = 'GET', body?: object) =>
  fetch(`${world.apiUrl}${path}`, {
    method,
    headers: { 'x-api-key': world.apiKey, ...(body ? { 'content-type': 'application/json' } : {}) },
    ...(body ? { body: JSON.stringify(body) } : {}),
  });

async function create(): Promise<string> {
  const answer = await call('/v2/sandboxes', 'POST', { templateID: 'base' });
  return ((await answer.json()) as { sandboxID: string }).sandboxID;
}

describe('metrics of many sandboxes', () => {
  it('are one sample for each that runs, by its id, and nothing for others', async () => {
    const ids = await Promise.all([create(), create(), create()]);
    const [ended, ...running] = ids;
    assert.equal((await call(`/sandboxes/${ended}`, 'DELETE')).status, 204);
    const unknown = 'i00000000000000000000';
    for (const query of [
      `sandbox_ids=${[...ids, unknown].join(',')}`,
      [...ids, unknown].map((id) => `sandbox_ids=${id}`).join('&'),
    ]) {
      const answer = await call(`/sandboxes/metrics?${query}`);
      const { sandboxes } = (await answer.json()) as { sandboxes: Record<string, Record<string, number>> };
      assert.deepEqual(Object.keys(sandboxes).sort(), [...running].sort());
      for (const sample of Object.values(sandboxes)) {
        assert.ok(Math.abs(sample.timestampUnix! * 1_000 - Date.now()) < 10_000);
        assert.ok(sample.cpuCount! >= 1 && sample.cpuUsedPct! >= 0);
        assert.ok(sample.memUsed! > 0 && sample.memUsed! <= sample.memTotal!);
        assert.ok(sample.diskUsed! > 0 && sample.diskUsed! <= sample.diskTotal!);
      }
    }
  });

  it('are of a hundred at most', async () => {
    const ids = Array.from({ length: 101 }, (_, index) => `i${String(index).padStart(20, '0')}`);
    const answer = await call(`/sandboxes/metrics?sandbox_ids=${ids.join(',')}`);
    assert.deepEqual([answer.status, ((await answer.json()) as { code: number }).code], [400, 400]);
  });
});
