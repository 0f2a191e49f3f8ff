// Owns the admin port: metrics and health for operators and orchestrators. Bound to loopback by the program.
// Invariant: /livez answers while the process runs at all; /readyz says why not when it says no.
import fastify, { type FastifyInstance } from 'fastify';
import { withDeadline } from '../../shared/deadline.ts';
import { mergedMetrics, registry } from '../../shared/metrics.ts';
import type { GatewayControl } from './app.ts';

export interface AdminOptions {
  gateway: Pick<GatewayControl, 'readiness'>;
  version: string;
  /** Of processes that belong to this one, as prom-client gives them as JSON. */
  otherMetrics?: () => Promise<unknown[]>;
}

/** Orchestrators give a probe one to a few seconds. */
const readinessTimeoutMs = 2_000;

export function buildAdminApp({ gateway, version, otherMetrics }: AdminOptions): FastifyInstance {
  const app = fastify({ logger: false });
  app.get('/livez', async () => ({ live: true, version }));
  app.get('/readyz', async (_request, reply) => {
    const asked = gateway.readiness();
    const readiness = await withDeadline('asking the node', readinessTimeoutMs, asked).catch(
      (error: Error) => ({ ready: false, notes: [error.message] }),
    );
    return reply.code(readiness.ready ? 200 : 503).send(readiness);
  });
  app.get('/metrics', async (_request, reply) =>
    reply.type(registry.contentType).send(await mergedMetrics((await otherMetrics?.()) ?? [])),
  );
  return app;
}
