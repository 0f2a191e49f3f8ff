// Owns the E2B routes that save a sandbox: pause, resume, snapshots, fork; and the list and removal of snapshots.
// Refuses to own what they do (sandboxes.ts) and Thaw's own snapshot routes (snapshots.ts).
// Invariant: the memory of a paused sandbox is nobody's snapshot and never shown as one.
import type { FastifyInstance } from 'fastify';
import { Type } from 'typebox';
import { ThawError } from '../../../shared/errors.ts';
import { e2bFailureOf } from '../e2b-errors.ts';
import type { GatewayContext } from '../gateway-context.ts';
import type { SnapshotFacts } from '../node-client.ts';
import { pauseNameOf } from '../sandboxes.ts';
import { connection, idOf, timeoutMsOf } from './sandboxes.ts';

type WithId = { Params: { id: string } };

const forkDefaultSeconds = 300;
const maxForks = 100;
const maxPageSize = 100;

const pauseBody = Type.Object({ memory: Type.Optional(Type.Boolean()) });
const snapshotBody = Type.Object({
  name: Type.Optional(Type.Union([Type.String({ minLength: 1, maxLength: 128 }), Type.Null()])),
  memory: Type.Optional(Type.Boolean()),
});
const forkBody = Type.Object({
  count: Type.Optional(Type.Integer({ minimum: 1, maximum: maxForks })),
  timeout: Type.Optional(Type.Integer({ minimum: 0 })),
});
interface SnapshotQuery {
  sandboxID?: string;
  name?: string;
  limit?: string;
  nextToken?: string;
}

export function captureRoutes(app: FastifyInstance, context: GatewayContext): void {
  const { sandboxes } = context;
  app.post<WithId & { Body: { memory?: boolean } }>(
    '/sandboxes/:id/pause',
    { schema: { body: pauseBody } },
    async ({ params, body }, reply) => {
      requireMemory(body.memory);
      await sandboxes.pause(idOf(params));
      return reply.code(204).send();
    },
  );
  app.post<WithId & { Body: { timeout?: number } }>(
    '/sandboxes/:id/resume',
    async ({ params, body }, reply) => {
      const timeoutMs = timeoutMsOf(context, body.timeout ?? forkDefaultSeconds);
      const { record, resumed } = await sandboxes.connect(idOf(params), timeoutMs);
      if (!resumed) throw new ThawError('conflict', 'the sandbox is running');
      return reply.code(201).send(connection(context, record));
    },
  );
  app.post<WithId & { Body: { name?: string | null; memory?: boolean } }>(
    '/sandboxes/:id/snapshots',
    { schema: { body: snapshotBody } },
    async ({ params, body }, reply) => {
      requireMemory(body.memory);
      const facts = await sandboxes.snapshot(idOf(params), body.name ? [body.name] : []);
      return reply.code(201).send(snapshotInfo(facts));
    },
  );
  app.post<WithId & { Body: { count?: number; timeout?: number } }>(
    '/sandboxes/:id/fork',
    { schema: { body: forkBody } },
    async (request, reply) => {
      const { count = 1, timeout = forkDefaultSeconds } = request.body;
      const forks = await sandboxes.fork(idOf(request.params), count, timeoutMsOf(context, timeout));
      const rows = forks.map((fork) =>
        fork.status === 'fulfilled'
          ? { sandbox: connection(context, fork.value) }
          : { error: e2bFailureOf(fork.reason, request.id).body },
      );
      return reply.code(201).send(rows);
    },
  );
  listingRoutes(app, context);
}

function listingRoutes(app: FastifyInstance, context: GatewayContext): void {
  app.get<{ Querystring: SnapshotQuery }>('/snapshots', async ({ query }, reply) => {
    const all = (await context.node.listSnapshots()).filter(isShown);
    const found = all.filter(
      ({ sandboxId, names, snapshotId }) =>
        (query.sandboxID === undefined || sandboxId === query.sandboxID) &&
        (query.name === undefined || names.includes(query.name) || snapshotId === query.name),
    );
    const limit = limitOf(query.limit);
    const start = query.nextToken
      ? found.findIndex(({ snapshotId }) => snapshotId === query.nextToken) + 1
      : 0;
    const page = found.slice(start, start + limit);
    if (start + limit < found.length) reply.header('x-next-token', page.at(-1)!.snapshotId);
    return page.map(snapshotInfo);
  });
  app.delete<WithId>('/templates/:id', async ({ params }, reply) => {
    await context.node.removeSnapshot(params.id);
    return reply.code(204).send();
  });
}

/** The memory of paused sandboxes, templates and functions are not what a user saved. */
export const isShown = ({ kind, names, sandboxId }: SnapshotFacts): boolean =>
  kind === 'sandbox' && !(sandboxId !== null && names.includes(pauseNameOf(sandboxId)));

const snapshotInfo = ({ snapshotId, names }: SnapshotFacts) => ({ snapshotID: snapshotId, names });

function limitOf(given: string | undefined): number {
  if (given === undefined) return maxPageSize;
  if (!/^[1-9][0-9]{0,2}$/.test(given) || Number(given) > maxPageSize)
    throw new ThawError('bad-request', `limit: expected a number from 1 to ${maxPageSize}`);
  return Number(given);
}

/** Without its memory a sandbox would come back as a cold boot, which Thaw does not do. */
function requireMemory(memory: boolean | undefined): void {
  if (memory === false)
    throw new ThawError(
      'not-implemented',
      'saving a sandbox without its memory is not offered by this version of Thaw',
    );
}
