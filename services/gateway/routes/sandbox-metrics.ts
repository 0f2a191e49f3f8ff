// Owns the E2B metrics routes: one sandbox or many, as its agent measures itself now.
// Refuses to own a history: the one sample is of the moment it is asked for.
import type { FastifyInstance } from 'fastify';
import { agentPort } from '../../../shared/agent-protocol.ts';
import { ThawError } from '../../../shared/errors.ts';
import { sandboxIdPattern } from '../../../shared/ids.ts';
import type { GatewayContext } from '../gateway-context.ts';

const askTimeoutMs = 5_000;
const maxAnswerBytes = 64 * 1024;
const maxSandboxes = 100;

interface AgentMetrics {
  ts: number;
  cpu_count: number;
  cpu_used_pct: number;
  mem_total: number;
  mem_used: number;
  mem_cache?: number;
  disk_total: number;
  disk_used: number;
}

export function metricsRoute(context: GatewayContext) {
  return async (app: FastifyInstance): Promise<void> => {
    app.get<{ Params: { id: string } }>('/sandboxes/:id/metrics', async ({ params: { id } }) => {
      if (!sandboxIdPattern.test(id)) throw new ThawError('sandbox-not-found', 'the sandbox was not found');
      const record = context.sandboxes.get(id);
      return record.state === 'paused' ? [] : [await sampleOf(context, id)];
    });
    app.get<{ Querystring: { sandbox_ids?: string } }>('/sandboxes/metrics', async ({ query }) => {
      const ids = (query.sandbox_ids ?? '').split(',').filter((id) => sandboxIdPattern.test(id));
      if (ids.length > maxSandboxes)
        throw new ThawError('bad-request', `sandbox_ids: expected at most ${maxSandboxes}`);
      const samples = await Promise.allSettled(ids.map((id) => sampleOf(context, id)));
      const rows = samples.flatMap((sample, at) =>
        sample.status === 'fulfilled' ? [[ids[at], sample.value] as const] : [],
      );
      return { sandboxes: Object.fromEntries(rows) };
    });
  };
}

async function sampleOf({ node, sandboxes }: GatewayContext, sandboxId: string) {
  const { accessToken } = sandboxes.get(sandboxId);
  const answer = await node.sandboxRequest(sandboxId, agentPort, {
    method: 'GET',
    path: '/metrics',
    headers: { 'x-access-token': accessToken },
    body: null,
    signal: AbortSignal.timeout(askTimeoutMs),
    timeoutMs: askTimeoutMs,
  });
  let text = '';
  for await (const chunk of answer.body) {
    text += chunk;
    if (text.length > maxAnswerBytes)
      throw new ThawError('guest-unreachable', 'the metrics of the guest are too long');
  }
  if (answer.status !== 200) throw new ThawError('guest-unreachable', `the agent answered ${answer.status}`);
  const sample = JSON.parse(text) as AgentMetrics;
  return {
    timestamp: new Date(sample.ts * 1_000).toISOString(),
    timestampUnix: sample.ts,
    cpuCount: sample.cpu_count,
    cpuUsedPct: sample.cpu_used_pct,
    memUsed: sample.mem_used,
    memTotal: sample.mem_total,
    memCache: sample.mem_cache ?? 0,
    diskUsed: sample.disk_used,
    diskTotal: sample.disk_total,
  };
}
