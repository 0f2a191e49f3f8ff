// Owns the E2B control plane's wire: paths, bodies, defaults by API version, error shape.
// Refuses to own sandboxes (sandboxes.ts) and their data plane (sandbox-proxy.ts). Invariant: what is not offered yet
// says 501 in E2B's shape; nothing that changes a sandbox's safety is accepted and ignored.
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { ThawError } from '../../../shared/errors.ts';
import { sandboxIdPattern } from '../../../shared/ids.ts';
import { e2bFailureOf } from '../e2b-errors.ts';
import { fromFramework } from '../framework-errors.ts';
import { type GatewayContext, requireCaller } from '../gateway-context.ts';
import { egressOf, type NetworkUpdate, networkOf, networkUpdate, shownNetwork } from '../network-config.ts';
import type { Query } from '../query-values.ts';
import type { Sandboxes } from '../sandboxes.ts';
import type { SandboxRecord } from '../state/state-store.ts';
import { captureRoutes } from './sandbox-capture.ts';
import { listSandboxes } from './sandbox-listing.ts';
import { logRoutes } from './sandbox-logs.ts';
import { metricsRoute } from './sandbox-metrics.ts';
import {
  type ConnectSandboxBody,
  type CreateSandboxBody,
  connectSandboxBody,
  createSandboxBody,
  type RefreshBody,
  refreshBody,
  type SetTimeoutBody,
  setTimeoutBody,
} from './sandbox-schemas.ts';
import { templateRoutes } from './templates.ts';

/** What the guest agent implements: up to watching of network mounts. */
export const envdVersion = '0.6.4';
/** Upstream names the host here; clients only require that it exists. */
const clientId = 'thaw';
const maxBodyBytes = 1024 * 1024;
export const v1TimeoutSeconds = 15;
const v2TimeoutSeconds = 300;

/** Laid out so that a client gets a plain answer; each moves to a handler of its own when it is offered. */
const notOffered: [method: 'GET' | 'POST' | 'PUT' | 'DELETE' | 'PATCH', path: string][] = [
  ['POST', '/templates'],
  ['POST', '/v2/templates'],
  ['PATCH', '/templates/:id'],
  ['GET', '/templates/:id/builds/:build/logs'],
  ['GET', '/volumes'],
  ['POST', '/volumes'],
  ['GET', '/secrets'],
  ['POST', '/secrets'],
];

type WithId = { Params: { id: string } };

export function sandboxRoutes(context: GatewayContext) {
  const { sandboxes } = context;
  return async (app: FastifyInstance): Promise<void> => {
    app.setErrorHandler((error, request, reply) => sendFailure(error, request, reply, context));
    app.addHook('onRequest', async ({ headers }) => requireCaller(context, headers));
    acceptEmptyJson(app);
    createRoutes(app, context, sandboxes);
    lifeRoutes(app, context, sandboxes);
    captureRoutes(app, context);
    logRoutes(app, context);
    templateRoutes(app, context);
    app.register(metricsRoute(context));
    for (const [method, url] of notOffered)
      app.route({ method, url, handler: async () => throwNotOffered(`${method} ${url}`) });
  };
}

/** Clients name JSON as the type of bodies they do not send. */
function acceptEmptyJson(app: FastifyInstance): void {
  const parse = app.getDefaultJsonParser('error', 'error');
  app.addContentTypeParser<string>('application/json', { parseAs: 'string' }, (request, text, done) => {
    if (text === '') done(null, undefined);
    else parse(request, text, done);
  });
  app.addHook('preValidation', async (request) => {
    if (request.body === undefined || request.body === null) request.body = {};
  });
}

export function sendFailure(
  error: unknown,
  request: FastifyRequest,
  reply: FastifyReply,
  context: GatewayContext,
) {
  const known = fromFramework(error);
  if (known.code === 'internal') context.log.error({ requestId: request.id, err: error }, 'a request failed');
  const failure = e2bFailureOf(known, request.id);
  return reply.code(failure.status).headers(failure.headers).send(failure.body);
}

function createRoutes(app: FastifyInstance, context: GatewayContext, sandboxes: Sandboxes): void {
  const schema = { body: createSandboxBody };
  for (const [url, defaultSeconds] of [
    ['/sandboxes', v1TimeoutSeconds],
    ['/v2/sandboxes', v2TimeoutSeconds],
  ] as const)
    app.post<{ Body: CreateSandboxBody }>(
      url,
      { schema, bodyLimit: maxBodyBytes },
      async (request, reply) => {
        const { body } = request;
        refuseUnsupported(body);
        const record = await sandboxes.create({
          templateId: body.templateID,
          timeoutMs: timeoutMsOf(context, body.timeout ?? defaultSeconds),
          metadata: body.metadata ?? {},
          envVars: body.envVars ?? {},
          network: networkOf(body.network, body.allow_internet_access),
          isPublic: body.network?.allowPublicTraffic !== false,
          onTimeout: body.autoPause === true ? 'pause' : 'kill',
          autoResume: body.autoResume?.enabled === true,
        });
        return reply.code(201).send(connection(context, record));
      },
    );
}

function lifeRoutes(app: FastifyInstance, context: GatewayContext, sandboxes: Sandboxes): void {
  for (const url of ['/sandboxes/:id/connect', '/v2/sandboxes/:id/connect'])
    app.post<WithId & { Body: ConnectSandboxBody }>(
      url,
      { schema: { body: connectSandboxBody } },
      async ({ params, body }, reply) => {
        const timeoutMs = timeoutMsOf(context, body.timeout ?? v2TimeoutSeconds);
        const sandboxId = idOf(params);
        if (sandboxes.get(sandboxId).state === 'paused') requireMemory(body.memory);
        const { record, resumed } = await sandboxes.connect(sandboxId, timeoutMs);
        return reply.code(resumed ? 201 : 200).send(connection(context, record));
      },
    );
  app.get<WithId>('/sandboxes/:id', async ({ params }) => detail(context, sandboxes.get(idOf(params))));
  app.delete<WithId>('/sandboxes/:id', async ({ params }, reply) => {
    await sandboxes.kill(idOf(params));
    return reply.code(204).send();
  });
  app.post<WithId & { Body: SetTimeoutBody }>(
    '/sandboxes/:id/timeout',
    { schema: { body: setTimeoutBody } },
    async ({ params, body }, reply) => {
      await sandboxes.setTimeout(idOf(params), timeoutMsOf(context, body.timeout), 'set');
      return reply.code(204).send();
    },
  );
  app.post<WithId & { Body: RefreshBody }>(
    '/sandboxes/:id/refreshes',
    { schema: { body: refreshBody } },
    async ({ params, body }, reply) => {
      await sandboxes.setTimeout(
        idOf(params),
        timeoutMsOf(context, body.duration ?? v1TimeoutSeconds),
        'extend',
      );
      return reply.code(204).send();
    },
  );
  app.put<WithId & { Body: NetworkUpdate }>(
    '/sandboxes/:id/network',
    { schema: { body: networkUpdate } },
    async ({ params, body }, reply) => {
      await sandboxes.setEgress(idOf(params), egressOf(body, body.allow_internet_access));
      return reply.code(204).send();
    },
  );
  for (const [url, states] of [
    ['/sandboxes', 'running'],
    ['/v2/sandboxes', 'running,paused'],
  ] as const)
    app.get<{ Querystring: Query }>(url, async ({ query }, reply) => {
      const { page, nextToken } = listSandboxes(sandboxes.list(), { state: states, ...query });
      if (nextToken !== undefined) reply.header('x-next-token', nextToken);
      return page.map(listed);
    });
}

/** @throws ThawError `sandbox-not-found` for what cannot be an id: it never reaches state or node. */
export function idOf({ id }: { id: string }): string {
  if (!sandboxIdPattern.test(id))
    throw new ThawError('sandbox-not-found', `sandbox ${JSON.stringify(id.slice(0, 64))} was not found`);
  return id;
}

export function timeoutMsOf(context: GatewayContext, seconds: number): number {
  const { maxSandboxTimeoutSeconds } = context.config;
  if (seconds > maxSandboxTimeoutSeconds)
    throw new ThawError('bad-request', `timeout: expected at most ${maxSandboxTimeoutSeconds} seconds`);
  return seconds * 1_000;
}

/** Without its memory a sandbox would come back as a cold boot, which Thaw does not do. */
export function requireMemory(memory: boolean | undefined): void {
  if (memory === false) throwNotOffered('memory: false');
}

/** A client that asked for one of these would rely on it. */
function refuseUnsupported(body: CreateSandboxBody): void {
  const asked: [string, boolean][] = [
    ['autoPauseMemory: false', body.autoPause === true && body.autoPauseMemory === false],
    ['volumeMounts', (body.volumeMounts ?? []).length > 0],
    ['mcp', body.mcp !== undefined && body.mcp !== null],
    ['iam', body.iam !== undefined && body.iam !== null],
  ];
  const field = asked.find(([, wanted]) => wanted)?.[0];
  if (field !== undefined) throwNotOffered(field);
}

function throwNotOffered(what: string): never {
  throw new ThawError('not-implemented', `${what} is not offered by this version of Thaw`);
}

export const identity = (record: SandboxRecord) => ({
  sandboxID: record.sandboxId,
  templateID: record.templateId,
  clientID: clientId,
  envdVersion,
  ...(record.alias === null ? {} : { alias: record.alias }),
});

/** What create and connect answer: all a client needs to reach the sandbox. */
export const connection = ({ config }: GatewayContext, record: SandboxRecord) => ({
  ...identity(record),
  envdAccessToken: record.accessToken,
  trafficAccessToken: record.trafficAccessToken ?? null,
  domain: config.domain,
});

const listed = (record: SandboxRecord) => ({
  ...identity(record),
  startedAt: new Date(record.startedAtMs).toISOString(),
  endAt: new Date(record.endAtMs).toISOString(),
  cpuCount: record.cpuCount,
  memoryMB: record.memoryMb,
  diskSizeMB: record.diskSizeMb,
  metadata: record.metadata,
  state: record.state,
  volumeMounts: [],
});

const detail = ({ config }: GatewayContext, record: SandboxRecord) => ({
  ...listed(record),
  envdAccessToken: record.accessToken,
  domain: config.domain,
  allowInternetAccess: record.allowInternetAccess,
  ...shownNetwork(record.network, record.trafficAccessToken === undefined),
  lifecycle: { onTimeout: record.onTimeout ?? 'kill', autoResume: record.autoResume ?? false },
});
