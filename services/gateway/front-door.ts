// Owns the HTTP server and the first decision about a request: a sandbox's, an invocation, or the framework's.
// Refuses to own any answer. Invariant: the two data paths cost no framework work; everything else is fastify's.
import {
  createServer,
  type IncomingMessage,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { Duplex } from 'node:stream';
import { ThawError } from '../../shared/errors.ts';
import { problemHeadersOf, problemOf } from '../../shared/problem.ts';
import type { GatewayContext } from './gateway-context.ts';
import { refuseUpgrade } from './raw-problem.ts';
import { requestIdOf } from './request-identity.ts';
import { type InvokeRoute, invokePrefix, invokeRoute } from './routes/invoke.ts';
import { proxyToSandbox, sandboxTargetOf, upgradeToSandbox } from './routes/sandbox-proxy.ts';

/** Above the 90 s that E2B clients and load balancers keep an idle connection, so that it is not we who race them. */
const keepAliveTimeoutMs = 125_000;
/** Ample for any honest client; ends those that send their headers byte by byte. */
const headersTimeoutMs = 30_000;

export function createFrontDoor(context: GatewayContext, framework: RequestListener): Server {
  const invocations = invokeRoute(context);
  const server = createServer(
    {
      keepAliveTimeout: keepAliveTimeoutMs,
      headersTimeout: headersTimeoutMs,
      // A body may stream for hours; a silent connection is ended by the idle time-out below.
      requestTimeout: 0,
      noDelay: true,
      shouldUpgradeCallback: wantsUpgrade,
    },
    (request, response) => enter(context, invocations, framework, request, response),
  );
  server.setTimeout(context.config.idleTimeoutMs);
  server.on('upgrade', (request, socket, head) => {
    // Whoever takes the socket over adds its own listeners; until then a reset must not end the process.
    socket.on('error', () => socket.destroy());
    void enterUpgrade(context, invocations, request, socket, head);
  });
  return server;
}

/** An offer of HTTP/2 is one that HTTP/1.1 servers may ignore; all else changes the protocol and needs a taker. */
const wantsUpgrade = (request: IncomingMessage): boolean => request.headers.upgrade?.toLowerCase() !== 'h2c';

function enter(
  context: GatewayContext,
  invocations: InvokeRoute,
  framework: RequestListener,
  request: IncomingMessage,
  response: ServerResponse,
): void {
  const target = sandboxTargetOf(request);
  const invoked = target === undefined && request.url!.startsWith(invokePrefix);
  if (target === undefined && !invoked) {
    framework(request, response);
    return;
  }
  count(context, response);
  if (target !== undefined) void proxyToSandbox(context, target, request, response);
  else invocations.handle(request, response);
}

function count({ traffic }: GatewayContext, work: NodeJS.EventEmitter): void {
  traffic.inFlight++;
  work.once('close', () => {
    traffic.inFlight--;
  });
}

async function enterUpgrade(
  context: GatewayContext,
  invocations: InvokeRoute,
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): Promise<void> {
  const target = sandboxTargetOf(request);
  count(context, socket);
  if (target !== undefined) return upgradeToSandbox(context, target, request, socket, head);
  if (request.url!.startsWith(invokePrefix)) return invocations.upgrade(request, socket, head);
  const requestId = requestIdOf(request.headers);
  const error = new ThawError('not-found', 'nothing here speaks another protocol than HTTP');
  refuseUpgrade(socket, error.status, problemHeadersOf(error, requestId), problemOf(error, requestId));
}
