// Owns putting the gateway together: one fastify app with its scopes behind the front door. Not listening: that and the
// process around it are the program's. Refuses to own any route's logic.
// Invariant: everything a route needs comes through the context made here, so two gateways can live in one process.
import fastify, { type FastifyInstance } from 'fastify';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { Deployments } from './deployments.ts';
import { e2bFailureOf } from './e2b-errors.ts';
import { validatorCompiler } from './edge-validation.ts';
import { createFrontDoor } from './front-door.ts';
import { type GatewayOptionsConfig, resolveGatewayConfig } from './gateway-config.ts';
import type { GatewayContext } from './gateway-context.ts';
import type { NodeClient } from './node-client.ts';
import { withOpenapi } from './openapi.ts';
import { refuseMalformed } from './raw-problem.ts';
import { requestIdOf } from './request-identity.ts';
import { functionRoutes, sendProblem } from './routes/functions.ts';
import { sandboxRoutes } from './routes/sandboxes.ts';
import { snapshotRoutes } from './routes/snapshots.ts';
import { templateUploadRoute } from './routes/templates.ts';
import { Sandboxes } from './sandboxes.ts';
import type { StateStore } from './state/state-store.ts';
import { TemplateBuilds } from './template-builds.ts';
import { Templates } from './templates.ts';

export interface GatewayOptions {
  node: NodeClient;
  state: StateStore;
  log: Log;
  config: GatewayOptionsConfig;
  version: string;
}

export interface Readiness {
  ready: boolean;
  notes: string[];
}

export type ResumeProgress = (done: number, total: number, what: string) => void;

/** What the program does with a gateway besides listening. */
export interface GatewayControl {
  /** Makes what the state knows servable again; call once, before or after `listen`. Never rejects: see the notes of `readiness`. */
  resume(onProgress?: ResumeProgress): Promise<void>;
  readiness(): Promise<Readiness>;
  /** Uploads for builds that came long ago; clients send them again when they are asked. @returns bytes that went. */
  dropOldUploads(): Promise<number>;
}

declare module 'fastify' {
  interface FastifyInstance {
    gateway: GatewayControl;
  }
}

/** JSON bodies of management routes; bundles and data paths are streams with their own limits. */
const jsonBodyLimitBytes = 1024 * 1024;
const idleSweepMs = 50;
const e2bPaths = /^\/(v[23]\/)?(sandboxes|snapshots|templates|volumes|secrets|volumecontent)(\/|\?|$)/;

export function buildGateway(options: GatewayOptions): FastifyInstance {
  const context = contextOf(options);
  const app = fastify({
    serverFactory: (handler) => createFrontDoor(context, handler),
    genReqId: (request) => requestIdOf(request.headers),
    bodyLimit: jsonBodyLimitBytes,
    logger: false,
    routerOptions: { maxParamLength: 256 },
    return503OnClosing: false,
    clientErrorHandler: refuseMalformed,
  });
  app.setValidatorCompiler(validatorCompiler);
  app.addHook('onSend', async (request, reply) => void reply.header('x-request-id', request.id));
  app.setErrorHandler((error, request, reply) => sendProblem(error, request, reply, context));
  app.setNotFoundHandler((request, reply) => {
    const error = new ThawError('not-found', `no route answers ${request.method} on this path`);
    if (!e2bPaths.test(request.url)) return sendProblem(error, request, reply, context);
    const failure = e2bFailureOf(error, request.id);
    return reply.code(failure.status).headers(failure.headers).send(failure.body);
  });
  app.register(withOpenapi((own) => ownRoutes(own, context)));
  app.register(sandboxRoutes(context));
  app.register(templateUploadRoute(context));
  app.decorate('gateway', controlOf(context));
  closeInTime(app, context);
  return app;
}

/** Thaw's own routes: what its OpenAPI document describes. */
export function ownRoutes(app: FastifyInstance, context: GatewayContext): void {
  app.get('/health', async () => ({ status: 'ok', version: context.version }));
  app.register(functionRoutes(context));
  app.register(snapshotRoutes(context));
}

function contextOf({ node, state, log, config, version }: GatewayOptions): GatewayContext {
  const resolved = resolveGatewayConfig(config);
  const deployments = new Deployments({ node, state, log, config: resolved });
  const traffic = { inFlight: 0, draining: false, resuming: true, notes: [] };
  const templates = new Templates({ node, state, log });
  const templateBuilds = new TemplateBuilds({ templates, node, state, log, config: resolved });
  const sandboxes = new Sandboxes({ node, state, log, templates });
  const parts = { deployments, templates, templateBuilds, sandboxes };
  return { node, state, log, config: resolved, version, ...parts, traffic };
}

function controlOf(context: GatewayContext): GatewayControl {
  const { traffic, node, state, log } = context;
  return {
    async resume(onProgress = () => {}) {
      try {
        await context.sandboxes.removeStale();
        await context.templateBuilds.resume();
        await context.templates.resume();
        traffic.notes = await context.deployments.resume(onProgress);
        traffic.resuming = false;
      } catch (error) {
        log.error({ err: error }, 'resuming failed');
        traffic.notes = [`resuming failed: ${(error as Error).message}`];
      }
    },
    async readiness() {
      const health = await node.health();
      const notes = [...traffic.notes, ...health.notes];
      if (traffic.resuming) notes.unshift('functions are being made ready');
      if (traffic.draining) notes.unshift('draining');
      // Reads and warm traffic go on without Redis: that is worth a note, not taking the gateway out.
      if (!state.connected) notes.unshift('redis does not answer: serving from memory, changes are refused');
      return { ready: health.ready && !traffic.resuming && !traffic.draining, notes };
    },
    dropOldUploads: () => context.templateBuilds.files.dropOld(),
  };
}

/** On close: refuse new work, let what runs finish, then cut what is left. */
function closeInTime(app: FastifyInstance, context: GatewayContext): void {
  const upgraded = new Set<{ destroy(): void }>();
  app.server.on('upgrade', (_request, socket) => {
    upgraded.add(socket);
    socket.on('close', () => upgraded.delete(socket));
  });
  app.addHook('preClose', async () => {
    context.traffic.draining = true;
    const cut = setTimeout(() => {
      app.server.closeAllConnections();
      for (const socket of upgraded) socket.destroy();
    }, context.config.drainTimeoutMs);
    // Connections that fall idle from now on would otherwise wait for their keep-alive time-out.
    const sweep = setInterval(() => app.server.closeIdleConnections(), idleSweepMs);
    app.server.once('close', () => {
      clearTimeout(cut);
      clearInterval(sweep);
    });
    await context.templateBuilds.close();
  });
}
