// Owns the management of functions under /v1/functions: deploy, list, change, delete, logs.
// Refuses to own builds (deployments.ts) and archives (bundle.ts). Invariant: names are checked before anything else is
// touched; an upload goes to the checks as a stream, never into memory.
import type { Readable } from 'node:stream';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { type Static, Type } from 'typebox';
import { type ErrorCode, ThawError } from '../../../shared/errors.ts';
import {
  type EndpointBody,
  endpointBodySchema,
  functionManifestSchema,
  manifestOfEndpoint,
} from '../../../shared/function-manifest.ts';
import { functionNamePattern, versionPattern } from '../../../shared/ids.ts';
import { problemHeadersOf, problemOf } from '../../../shared/problem.ts';
import { receiveBundle } from '../bundle.ts';
import type { Deployment } from '../deployments.ts';
import { sendEvents } from '../event-stream.ts';
import { fromFramework } from '../framework-errors.ts';
import { type GatewayContext, requireCaller } from '../gateway-context.ts';
import { discardBody } from '../raw-problem.ts';
import type { FunctionView, VersionRecord } from '../state/state-store.ts';

const { warm, timeoutMs, concurrency, recycle, auth } = functionManifestSchema.properties;
/** What can change without a build; `version` makes another ready version serve. */
const patchBody = Type.Object(
  { version: Type.Optional(Type.Integer({ minimum: 1 })), warm, timeoutMs, concurrency, recycle, auth },
  { additionalProperties: false },
);
type PatchBody = Static<typeof patchBody>;

type WithName = { Params: { name: string } };
type WithVersion = { Params: { name: string; version: string } };

export function functionRoutes(context: GatewayContext) {
  return async (app: FastifyInstance): Promise<void> => {
    app.setErrorHandler((error, request, reply) => sendProblem(error, request, reply, context));
    app.addHook('onRequest', async ({ headers }) => requireCaller(context, headers));
    app.addHook('onRequest', async ({ params }) => {
      const { name } = params as { name?: string };
      if (name !== undefined) requireName(name);
    });
    app.register(deployRoute(context));
    readRoutes(app, context);
    changeRoutes(app, context);
    endpointRoute(app, context);
    app.post('/v1/functions/:name/invocations', async () => notOffered('asynchronous invocation'));
    app.get('/v1/invocations/:id', async () => notOffered('asynchronous invocation'));
  };
}

function requireName(name: string): void {
  if (!functionNamePattern.test(name))
    throw new ThawError('bad-name', `a function's name must match ${functionNamePattern.source}`);
}

export function sendProblem(
  error: unknown,
  request: FastifyRequest,
  reply: FastifyReply,
  context: GatewayContext,
) {
  const known = fromFramework(error);
  if (known.code === 'internal') context.log.error({ requestId: request.id, err: error }, 'a request failed');
  return reply
    .code(known.status)
    .headers(problemHeadersOf(known, request.id))
    .send(Buffer.from(JSON.stringify(problemOf(known, request.id))));
}

function notOffered(what: string): never {
  throw new ThawError('not-implemented', `${what} is not offered by this version of Thaw`);
}

/** A scope of its own: bodies here are streams of any type; the archive's first bytes say what it is. */
function deployRoute(context: GatewayContext) {
  return async (app: FastifyInstance): Promise<void> => {
    app.removeAllContentTypeParsers();
    app.addContentTypeParser('*', (_request, payload, done) => done(null, payload));
    app.addHook('onResponse', async (request) => discardBody(request.raw));
    app.post<WithName & { Body: Readable | undefined }>(
      '/v1/functions/:name/versions',
      { bodyLimit: Number.MAX_SAFE_INTEGER },
      async (request, reply) => {
        const { name } = request.params;
        return answerDeploy(request, reply, await accept(context, name, request));
      },
    );
  };
}

/** A sandbox's snapshot becomes a version, with its server as the function. */
function endpointRoute(app: FastifyInstance, context: GatewayContext): void {
  const { deployments, node } = context;
  app.post<{ Body: EndpointBody }>(
    '/v1/functions',
    { schema: { body: endpointBodySchema } },
    async (request, reply) => {
      deployments.requireRoom();
      const { name, fromSnapshot } = request.body;
      requireName(name);
      const facts = await node.inspectSnapshot(fromSnapshot);
      if (facts.kind === 'function')
        throw new ThawError('conflict', `${fromSnapshot} is a function's snapshot; take one of a sandbox`);
      const manifest = manifestOfEndpoint(request.body, facts);
      const deployment = await deployments.begin(name, { manifest, fromSnapshot: facts.snapshotId });
      return answerDeploy(request, reply, deployment);
    },
  );
}

async function accept(
  context: GatewayContext,
  name: string,
  request: FastifyRequest<{ Body: Readable | undefined }>,
): Promise<Deployment> {
  const { deployments, config } = context;
  deployments.requireRoom();
  const announcedBytes = Number(request.headers['content-length'] ?? 0);
  if (announcedBytes > config.maxBundleBytes)
    throw new ThawError(
      'body-too-large',
      `the upload is larger than the limit of ${config.maxBundleBytes} bytes`,
    );
  if (request.body === undefined || request.body === null)
    throw new ThawError('bad-bundle', 'the body must be a tar or tar.gz archive; it is empty');
  const bundle = await receiveBundle(request.body, name, config);
  return deployments.begin(name, bundle);
}

/** As much as a client may ask to wait for; longer than that it should ask again. */
const maxWaitSeconds = 900;

/** RFC 7240: `Prefer: wait=SECONDS`. */
function waitMsOf(prefer: string | string[] | undefined): number {
  const match = /(?:^|[,;\s])wait\s*=\s*"?([0-9]{1,6})/i.exec(String(prefer ?? ''));
  return match === null ? 0 : Math.min(Number(match[1]), maxWaitSeconds) * 1_000;
}

async function settledWithin(deployment: Deployment, waitMs: number): Promise<VersionRecord | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const expiry = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), waitMs);
  });
  try {
    return await Promise.race([deployment.finished, expiry]);
  } finally {
    clearTimeout(timer);
  }
}

async function answerDeploy(
  { headers }: { headers: FastifyRequest['headers'] },
  reply: FastifyReply,
  deployment: Deployment,
) {
  const waitMs = waitMsOf(headers.prefer);
  const finished = waitMs > 0 ? await settledWithin(deployment, waitMs) : undefined;
  if (finished !== undefined) reply.header('preference-applied', `wait=${waitMs / 1_000}`);
  const record = finished ?? deployment.record;
  reply.header('location', `/v1/functions/${record.name}/versions/${record.version}`);
  if (record.error !== null) throw buildProblem(record.error);
  return reply.code(record.state === 'ready' ? 201 : 202).send(versionBody(record));
}

/** The program's own last words belong to the explanation, unless the node has put them there already. */
function buildProblem({
  code,
  detail,
  output,
}: {
  code: ErrorCode;
  detail: string;
  output: string;
}): ThawError {
  const lastLine = output.trimEnd().split('\n').at(-1) ?? '';
  const missing = lastLine !== '' && !detail.includes(lastLine);
  return new ThawError(code, missing ? `${detail}\n${output}` : detail);
}

function readRoutes(app: FastifyInstance, context: GatewayContext): void {
  const { functions } = context.state;
  const pools = () => context.node.pools?.() ?? {};
  app.get('/v1/functions', async () => {
    const states = pools();
    return { functions: functions.list().map((view) => functionBody(view, states)) };
  });
  app.get<WithName>('/v1/functions/:name', async ({ params }) =>
    functionBody(viewOf(context, params.name), pools()),
  );
  app.get<WithName>('/v1/functions/:name/versions', async ({ params }) => ({
    versions: viewOf(context, params.name).versions.map(versionBody),
  }));
  app.get<WithVersion>('/v1/functions/:name/versions/:version', async ({ params }) =>
    versionBody(recordOf(context, params)),
  );
  app.get<WithName>('/v1/functions/:name/logs', async (request, reply) => {
    const { name } = viewOf(context, request.params.name);
    reply.hijack();
    const events = (signal: AbortSignal) => logEvents(context, name, signal);
    await sendEvents(reply.raw, { 'x-request-id': request.id }, events).catch((error: Error) => {
      context.log.warn({ function: name, reason: error.message }, 'a log stream broke');
      reply.raw.destroy();
    });
  });
}

async function* logEvents(context: GatewayContext, name: string, signal: AbortSignal) {
  for await (const data of context.node.logs(name, signal)) yield { event: 'log', data };
}

function changeRoutes(app: FastifyInstance, context: GatewayContext): void {
  const { deployments } = context;
  app.patch<WithName & { Body: PatchBody }>(
    '/v1/functions/:name',
    { schema: { body: patchBody } },
    async ({ params, body }) => {
      const { name } = viewOf(context, params.name);
      const { version, ...change } = body;
      if (version !== undefined) await deployments.activate(name, version);
      if (Object.keys(change).length > 0) await deployments.reconfigure(name, change);
      return functionBody(viewOf(context, name), context.node.pools?.() ?? {});
    },
  );
  app.delete<WithName>('/v1/functions/:name', async ({ params }, reply) => {
    if (!(await deployments.remove(params.name))) throw missing(params.name);
    return reply.code(204).send();
  });
}

const missing = (label: string) => new ThawError('function-not-found', `no function ${label} is deployed`);

function viewOf(context: GatewayContext, name: string): FunctionView {
  const view = context.state.functions.get(name);
  if (view === undefined) throw missing(name);
  return view;
}

function recordOf(context: GatewayContext, params: { name: string; version: string }): VersionRecord {
  if (!versionPattern.test(params.version))
    throw new ThawError('bad-name', 'a version is a positive whole number');
  const { versions } = viewOf(context, params.name);
  const record = versions.find((candidate) => candidate.version === Number(params.version));
  if (record === undefined) throw missing(`${params.name}@${params.version}`);
  return record;
}

function functionBody(view: FunctionView, pools: Record<string, Record<string, number>>) {
  const current = view.versions.find((record) => record.version === view.currentVersion);
  const pool = pools[`${view.name}@${view.currentVersion}`];
  return {
    name: view.name,
    url: `/fn/${view.name}/`,
    createdAt: view.createdAt,
    currentVersion: view.currentVersion,
    current: current === undefined ? null : versionBody(current),
    versions: view.versions.map(({ version, state }) => ({ version, state })),
    ...(pool === undefined ? {} : { pool }),
  };
}

function versionBody(record: VersionRecord) {
  const { env, ...manifest } = record.manifest;
  return {
    name: record.name,
    version: record.version,
    state: record.state,
    // Values of environment variables are often secrets: only their names are shown.
    manifest: { ...manifest, env: Object.keys(env) },
    bundle:
      record.bundleSha256 === null
        ? null
        : { sha256: record.bundleSha256, sizeBytes: record.bundleSizeBytes },
    fromSnapshot: record.fromSnapshot ?? null,
    snapshotId: record.snapshotId,
    createdAt: record.createdAt,
    finishedAt: record.finishedAt,
    error: record.error,
  };
}
