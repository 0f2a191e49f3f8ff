// Owns Thaw's own snapshot routes: list, inspect, verify, remove. Refuses to own taking them (sandbox-capture.ts).
// Invariant: a snapshot is shown with what it costs: its unique bytes, its pause by stage, what it fits to.
import type { FastifyInstance } from 'fastify';
import { ThawError } from '../../../shared/errors.ts';
import { snapshotNamePattern } from '../../../shared/ids.ts';
import { type GatewayContext, requireCaller } from '../gateway-context.ts';
import { sendProblem } from './functions.ts';

/** An id or a name. @throws ThawError `template-not-found` for what can be neither: it never reaches the node. */
export function snapshotNameOf({ id }: { id: string }): string {
  if (!snapshotNamePattern.test(id))
    throw new ThawError('template-not-found', `no template or snapshot ${JSON.stringify(id.slice(0, 64))}`);
  return id;
}

export function snapshotRoutes(context: GatewayContext) {
  const { node, templates } = context;
  return async (app: FastifyInstance): Promise<void> => {
    app.setErrorHandler((error, request, reply) => sendProblem(error, request, reply, context));
    app.addHook('onRequest', async ({ headers }) => requireCaller(context, headers));
    app.get('/v1/snapshots', async () => ({ snapshots: await node.listSnapshots() }));
    app.get<{ Params: { id: string } }>('/v1/snapshots/:id', async ({ params }) =>
      node.inspectSnapshot(snapshotNameOf(params)),
    );
    app.get<{ Params: { id: string } }>('/v1/snapshots/:id/verification', async ({ params }) =>
      node.verifySnapshot(snapshotNameOf(params)),
    );
    app.delete<{ Params: { id: string } }>('/v1/snapshots/:id', async ({ params }, reply) => {
      await templates.removeSnapshot(params.id);
      return reply.code(204).send();
    });
  };
}
