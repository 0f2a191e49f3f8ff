// Owns the E2B routes that save a sandbox: pause, resume, snapshots, fork; and the list of snapshots.
// Refuses to own what they do (sandboxes.ts), their removal (templates.ts) and Thaw's own snapshot routes (snapshots.ts).
// Invariant: the memory of a paused sandbox is nobody's snapshot and never shown as one.
import type { FastifyInstance } from 'fastify';
import { type Static, Type } from 'typebox';
import { ThawError } from '../../../shared/errors.ts';
import { snapshotIdPattern, snapshotNamePattern } from '../../../shared/ids.ts';
import { e2bFailureOf } from '../e2b-errors.ts';
import type { GatewayContext } from '../gateway-context.ts';
import type { SnapshotFacts } from '../node-client.ts';
import { integerIn, type Query, textIn } from '../query-values.ts';
import { pauseNameOf } from '../sandboxes.ts';
import { isTemplatesName } from '../template-names.ts';
import { connection, idOf, requireMemory, timeoutMsOf, v1TimeoutSeconds } from './sandboxes.ts';

type WithId = { Params: { id: string } };

const forkDefaultSeconds = 300;
const maxForks = 100;
const maxPageSize = 100;

const pauseBody = Type.Object({
  memory: Type.Optional(Type.Boolean()),
  requireHealthyGuest: Type.Optional(Type.Boolean()),
});
/** Its `autoPause` has no meaning any more. */
const resumeBody = Type.Object({
  timeout: Type.Optional(Type.Integer({ minimum: 0 })),
  memory: Type.Optional(Type.Boolean()),
});
const snapshotBody = Type.Object({
  name: Type.Optional(Type.Union([Type.String({ pattern: snapshotNamePattern.source }), Type.Null()])),
  memory: Type.Optional(Type.Boolean()),
});
const forkBody = Type.Object({
  count: Type.Optional(Type.Integer({ minimum: 1, maximum: maxForks })),
  timeout: Type.Optional(Type.Integer({ minimum: 0 })),
});

export function captureRoutes(app: FastifyInstance, context: GatewayContext): void {
  const { sandboxes } = context;
  app.post<WithId & { Body: Static<typeof pauseBody> }>(
    '/sandboxes/:id/pause',
    { schema: { body: pauseBody } },
    async ({ params, body }, reply) => {
      requireMemory(body.memory);
      if (body.requireHealthyGuest) await sandboxes.requireHealthy(idOf(params));
      await sandboxes.pause(idOf(params));
      return reply.code(204).send();
    },
  );
  app.post<WithId & { Body: Static<typeof resumeBody> }>(
    '/sandboxes/:id/resume',
    { schema: { body: resumeBody } },
    async ({ params, body }, reply) => {
      requireMemory(body.memory);
      const timeoutMs = timeoutMsOf(context, body.timeout ?? v1TimeoutSeconds);
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
      if (body.name) context.templates.requireFree(body.name);
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
  app.get<{ Querystring: Query }>('/snapshots', async ({ query }, reply) => {
    const source = textIn(query, 'sandboxID');
    const name = textIn(query, 'name');
    const limit = integerIn(query, 'limit', 1, maxPageSize) ?? maxPageSize;
    const isAfter = cursorOf(textIn(query, 'nextToken'));
    const all = (await context.node.listSnapshots()).filter(isShown).sort(newestFirst);
    const found = all.filter(
      (facts) =>
        isAfter(facts) &&
        (source === undefined || facts.sandboxId === source) &&
        (name === undefined || facts.names.includes(name) || facts.snapshotId === name),
    );
    const page = found.slice(0, limit);
    if (found.length > limit) reply.header('x-next-token', tokenOf(page.at(-1)!));
    return page.map(snapshotInfo);
  });
}

/** The memory of paused sandboxes, templates and functions are not what a user saved. */
export const isShown = ({ kind, names, sandboxId }: SnapshotFacts): boolean =>
  kind === 'sandbox' &&
  !names.some((name) => isTemplatesName(name) || (sandboxId !== null && name === pauseNameOf(sandboxId)));

const snapshotInfo = ({ snapshotId, names }: SnapshotFacts) => ({ snapshotID: snapshotId, names });

type Position = Pick<SnapshotFacts, 'createdAt' | 'snapshotId'>;

const newestFirst = (a: Position, b: Position): number =>
  Date.parse(b.createdAt) - Date.parse(a.createdAt) || (a.snapshotId < b.snapshotId ? 1 : -1);

/** Says where a page ended, not by what: a snapshot that is removed in between does no harm. */
const tokenOf = ({ createdAt, snapshotId }: Position): string =>
  Buffer.from(`${createdAt} ${snapshotId}`).toString('base64url');

function cursorOf(token: string | undefined): (facts: Position) => boolean {
  if (token === undefined) return () => true;
  const [createdAt = '', snapshotId = ''] = Buffer.from(token, 'base64url').toString().split(' ');
  if (Number.isNaN(Date.parse(createdAt)) || !snapshotIdPattern.test(snapshotId))
    throw new ThawError('bad-request', 'nextToken: not one of ours');
  return (facts) => newestFirst({ createdAt, snapshotId }, facts) < 0;
}
