// Owns Thaw's own snapshot routes: list, inspect, verify, remove. Refuses to own taking them (sandbox-capture.ts).
// Invariant: a snapshot is shown with what it costs: its unique bytes, its pause by stage, what it fits to.
import type { FastifyInstance } from 'fastify';
import { type GatewayContext, requireCaller } from '../gateway-context.ts';
import { sendProblem } from './functions.ts';

export function snapshotRoutes(context: GatewayContext) {
  const { node, templates } = context;
  return async (app: FastifyInstance): Promise<void> => {
    app.setErrorHandler((error, request, reply) => sendProblem(error, request, reply, context));
    app.addHook('onRequest', async ({ headers }) => requireCaller(context, headers));
    app.get('/v1/snapshots', async () => ({ snapshots: await node.listSnapshots() }));
    app.get<{ Params: { id: string } }>('/v1/snapshots/:id', async ({ params }) =>
      node.inspectSnapshot(params.id),
    );
    app.get<{ Params: { id: string } }>('/v1/snapshots/:id/verification', async ({ params }) =>
      node.verifySnapshot(params.id),
    );
    app.delete<{ Params: { id: string } }>('/v1/snapshots/:id', async ({ params }, reply) => {
      await templates.removeSnapshot(params.id);
      return reply.code(204).send();
    });
  };
}
