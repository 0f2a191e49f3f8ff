// Owns the E2B routes of templates: request a build, upload its files, start it, ask how it goes; names, tags, removal.
// Refuses to own what they do (template-builds.ts, templates.ts) and Thaw's own snapshot routes. Invariant: an upload goes to the checks as
// a stream, and only by a link that was given out for it.
import type { Readable } from 'node:stream';
import type { FastifyInstance } from 'fastify';
import { ThawError } from '../../../shared/errors.ts';
import { clientOrigin } from '../forwarded-headers.ts';
import type { GatewayContext } from '../gateway-context.ts';
import { discardBody } from '../raw-problem.ts';
import { filesHashPattern } from '../template-files.ts';
import { planOf } from '../template-plan.ts';
import { type TemplateBuild, type TemplateRecord, taggedBuild } from '../template-record.ts';
import {
  type AssignTagsBody,
  assignTagsBody,
  type RemoveTagsBody,
  type RequestBuildBody,
  removeTagsBody,
  requestBuildBody,
  type StartBuildBody,
  startBuildBody,
} from '../template-schemas.ts';
import { envdVersion, sendFailure } from './sandboxes.ts';

type WithId = { Params: { id: string } };
type WithBuild = { Params: { id: string; build: string } };
type WithHash = { Params: { id: string; hash: string } };

/** As many log lines as clients expect of one answer. */
const linesPerAnswer = 100;
/** What a client that has read all lines asks for is no error. */
const maxLogsOffset = 1_000_000;
const startBodyLimitBytes = 8 * 1024 * 1024;

export function templateRoutes(app: FastifyInstance, context: GatewayContext): void {
  buildRoutes(app, context);
  namingRoutes(app, context);
  listingRoutes(app, context);
}

function buildRoutes(app: FastifyInstance, context: GatewayContext): void {
  const { templates, templateBuilds } = context;
  app.post<{ Body: RequestBuildBody }>(
    '/v3/templates',
    { schema: { body: requestBuildBody } },
    async ({ body }, reply) => {
      const name = body.name ?? body.alias;
      if (!name) throw new ThawError('bad-request', 'name: a template needs one');
      const { template, build } = await templateBuilds.request({
        name,
        tags: body.tags ?? [],
        memoryMb: body.memoryMB ?? null,
        cpuCount: body.cpuCount ?? null,
        minFreeDiskMb: body.minFreeDiskMb ?? null,
      });
      return reply.code(202).send({ ...identity(template), buildID: build.buildId, tags: build.tags });
    },
  );
  app.get<WithHash>('/templates/:id/files/:hash', async (request, reply) => {
    const { id, hash } = request.params;
    templates.get(id);
    requireHash(hash);
    const present = await templateBuilds.files.has(hash);
    const origin = clientOrigin(request.raw, context.config.trustForwarded);
    const url = `${origin}/templates/files/${hash}?${templateBuilds.files.linkQuery(hash)}`;
    return reply.code(201).send({ present, url });
  });
  app.post<WithBuild & { Body: StartBuildBody }>(
    '/v2/templates/:id/builds/:build',
    { schema: { body: startBuildBody }, bodyLimit: startBodyLimitBytes },
    async ({ params, body }, reply) => {
      await templateBuilds.start(params.id, params.build, planOf(body));
      return reply.code(202).send();
    },
  );
  app.get<WithBuild & { Querystring: { logsOffset?: string; limit?: string } }>(
    '/templates/:id/builds/:build/status',
    async ({ params, query }) => {
      const offset = numberIn('logsOffset', query.logsOffset, 0, maxLogsOffset);
      const limit = numberIn('limit', query.limit, linesPerAnswer, linesPerAnswer);
      // The state first: every line of a build that has ended is stored by then.
      const { template, build } = await templateBuilds.status(params.id, params.build);
      const logEntries = await context.state.templates.readLog(build.buildId, offset, limit);
      return { ...buildBody(template, build), logEntries, logs: [] };
    },
  );
}

const buildBody = (template: TemplateRecord, { buildId, state, error }: TemplateBuild) => ({
  templateID: template.templateId,
  buildID: buildId,
  status: state,
  ...(error === null
    ? {}
    : { reason: { message: error.message, ...(error.step === null ? {} : { step: error.step }) } }),
});

function namingRoutes(app: FastifyInstance, context: GatewayContext): void {
  const { templates } = context;
  app.get<{ Params: { alias: string } }>('/templates/aliases/:alias', async ({ params }) => {
    const known = context.state.templates.get(params.alias);
    const named = known !== undefined && Object.keys(known.tags).length > 0;
    const { templateId } = named ? known : await templates.resolve(params.alias);
    return { templateID: templateId, public: templateId === 'base' };
  });
  app.post<{ Body: AssignTagsBody }>(
    '/templates/tags',
    { schema: { body: assignTagsBody } },
    async ({ body }, reply) => {
      const { buildId } = await templates.assignTags(body.target, body.tags);
      return reply.code(201).send({ buildID: buildId, tags: body.tags });
    },
  );
  app.delete<{ Body: RemoveTagsBody }>(
    '/templates/tags',
    { schema: { body: removeTagsBody } },
    async ({ body }, reply) => {
      await templates.removeTags(body.name, body.tags);
      return reply.code(204).send();
    },
  );
  app.get<WithId>('/templates/:id/tags', async ({ params }) =>
    Object.entries(templates.get(params.id).tags).map(([tag, { buildId, assignedAt }]) => ({
      tag,
      buildID: buildId,
      createdAt: assignedAt,
    })),
  );
}

function listingRoutes(app: FastifyInstance, context: GatewayContext): void {
  const { templates } = context;
  app.get('/templates', async () => [...templates.list().map(listed), await baseRow(context)]);
  app.get<WithId>('/templates/:id', async ({ params }) => {
    const template = templates.get(params.id);
    const builds = template.builds.map((build) => ({
      buildID: build.buildId,
      status: build.state,
      createdAt: build.createdAt,
      updatedAt: build.finishedAt ?? build.createdAt,
      ...(build.finishedAt === null ? {} : { finishedAt: build.finishedAt }),
      ...sizeOf(build),
      envdVersion,
    }));
    return { ...listed(template), builds };
  });
  app.delete<WithId>('/templates/:id', async ({ params: { id } }, reply) => {
    if (id === 'base') throw new ThawError('conflict', 'the base template cannot be removed');
    const known = context.state.templates.get(id);
    if (known !== undefined) await context.templateBuilds.stop(known.name);
    if (!(await templates.remove(id))) await templates.removeSnapshot(id);
    return reply.code(204).send();
  });
}

const identity = ({ templateId, name }: TemplateRecord) => ({
  templateID: templateId,
  names: [name],
  aliases: [name],
  public: false,
});

const sizeOf = ({ facts, wanted }: TemplateBuild) => ({
  cpuCount: facts?.cpuCount ?? wanted.cpuCount ?? 0,
  memoryMB: facts?.memoryMb ?? wanted.memoryMb ?? 0,
  diskSizeMB: facts?.diskSizeMb ?? 0,
});

/** Thaw does not count uses. */
const unused = { lastSpawnedAt: null, spawnCount: 0, createdBy: null };

const updatedAt = ({ builds, createdAt }: TemplateRecord): string =>
  builds[0]?.finishedAt ?? builds[0]?.createdAt ?? createdAt;

function listed(template: TemplateRecord) {
  const build = taggedBuild(template) ?? template.builds[0];
  return {
    ...identity(template),
    ...(build === undefined ? { cpuCount: 0, memoryMB: 0, diskSizeMB: 0 } : sizeOf(build)),
    ...unused,
    buildID: build?.buildId ?? '',
    buildStatus: build?.state ?? 'waiting',
    buildCount: template.builds.length,
    createdAt: template.createdAt,
    updatedAt: updatedAt(template),
    envdVersion,
  };
}

async function baseRow({ node }: GatewayContext) {
  const { snapshotId } = await node.resolveTemplate('base');
  const facts = await node.inspectSnapshot(snapshotId);
  return {
    ...{ templateID: 'base', names: ['base'], aliases: ['base'], public: true },
    ...{ cpuCount: facts.vcpus, memoryMB: facts.memoryMb, diskSizeMB: 0 },
    ...{ ...unused, buildCount: 1, buildStatus: 'ready', buildID: snapshotId, envdVersion },
    ...{ createdAt: facts.createdAt, updatedAt: facts.createdAt },
  };
}

/** A scope of its own: no API key, for the link is the permission; the body is a stream of whatever type. */
export function templateUploadRoute(context: GatewayContext) {
  const { templateBuilds, config, traffic } = context;
  return async (app: FastifyInstance): Promise<void> => {
    app.setErrorHandler((error, request, reply) => sendFailure(error, request, reply, context));
    app.removeAllContentTypeParsers();
    app.addContentTypeParser('*', (_request, payload, done) => done(null, payload));
    app.addHook('onResponse', async (request) => discardBody(request.raw));
    app.put<{
      Params: { hash: string };
      Querystring: { expires?: string; signature?: string };
      Body: Readable | undefined;
    }>('/templates/files/:hash', { bodyLimit: Number.MAX_SAFE_INTEGER }, async (request, reply) => {
      const { hash } = request.params;
      requireHash(hash);
      templateBuilds.files.requireLink(hash, request.query);
      if (traffic.draining) throw new ThawError('shutting-down', 'this gateway is draining');
      if (Number(request.headers['content-length'] ?? 0) > config.maxBundleBytes)
        throw new ThawError(
          'body-too-large',
          `the upload is larger than the limit of ${config.maxBundleBytes} bytes`,
        );
      if (!request.body)
        throw new ThawError('bad-bundle', 'the body must be a tar or tar.gz archive; it is empty');
      await templateBuilds.files.receive(hash, request.body);
      return reply.code(200).send();
    });
  };
}

function requireHash(hash: string): void {
  if (!filesHashPattern.test(hash))
    throw new ThawError('bad-request', 'hash: expected a SHA-256 in hexadecimal digits');
}

function numberIn(name: string, given: string | undefined, otherwise: number, maximum: number): number {
  if (given === undefined) return otherwise;
  if (!/^[0-9]{1,9}$/.test(given) || Number(given) > maximum)
    throw new ThawError('bad-request', `${name}: expected a number up to ${maximum}`);
  return Number(given);
}
