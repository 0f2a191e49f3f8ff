// Owns the E2B metrics routes: one sandbox or many, as its agent measures itself now.
// Refuses to own a history: the one sample is of the moment it is asked for.
import type { FastifyInstance } from 'fastify';
import { agentPort } from '../../../shared/agent-protocol.ts';
import { ThawError } from '../../../shared/errors.ts';
import { sandboxIdPattern } from '../../../shared/ids.ts';
import type { GatewayContext } from '../gateway-context.ts';
import { integerIn, listIn, type Query } from '../query-values.ts';
import { idOf } from './sandboxes.ts';

const askTimeoutMs = 5_000;
const maxAnswerBytes = 64 * 1024;
const maxSandboxes = 100;
/** How long a sample stands for, as in E2B. */
const sampleSeconds = 5;
/** The last second of the year 9999. */
const maxSeconds = 253_402_300_799;

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
    app.get<{ Params: { id: string }; Querystring: Query }>('/sandboxes/:id/metrics', async (request) => {
      const { query } = request;
      const sandboxId = idOf(request.params);
      const startSeconds = integerIn(query, 'start', 0, maxSeconds) ?? 0;
      const endSeconds = integerIn(query, 'end', 0, maxSeconds) ?? maxSeconds;
      if (startSeconds > endSeconds) throw new ThawError('bad-request', 'end: expected one after start');
      if (context.sandboxes.get(sandboxId).state === 'paused') return [];
      const sample = await sampleOf(context, sandboxId);
      // Whoever asks for all until now asked a moment before the sample was taken.
      const isWithin =
        sample.timestampUnix >= startSeconds && sample.timestampUnix <= endSeconds + sampleSeconds;
      return isWithin ? [sample] : [];
    });
    app.get<{ Querystring: Query }>('/sandboxes/metrics', async ({ query }) => {
      const ids = listIn(query, 'sandbox_ids').filter((id) => sandboxIdPattern.test(id));
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
