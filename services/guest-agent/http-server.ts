// Owns the agent's HTTP door: whether this VM may serve at all, and the host's routes with their secret.
// Refuses to own the sandbox's routes (sandbox-routes.ts) and what routes do (the services).
// Invariant: outside state `ready` nothing but GET /health is served (held: requests wait), and no internal route runs without the secret.
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { secretHeader } from '../../shared/agent-protocol.ts';
import { ConnectError, connectStatus } from '../../shared/connect-frames.ts';
import { equalSecrets } from '../../shared/secrets.ts';

import type { AgentState } from './agent-state.ts';
import { asConnectError, sendJson } from './connect-json.ts';
import type { FunctionRunner } from './function-runner.ts';
import { initSandbox, putBundle, startRunner } from './internal-routes.ts';
import type { ProcessTable } from './process-table.ts';
import { routeSandbox } from './sandbox-routes.ts';
import type { Settings } from './settings.ts';
import type { WatchTable } from './watch-service.ts';

// Not by import: that evaluates every export, and one of them loads undici, which costs each guest 12 MB.
const { createServer } = process.getBuiltinModule('node:http');

export interface AgentParts {
  settings: Settings;
  state: AgentState;
  processes: ProcessTable;
  runner: FunctionRunner;
  /** Made, and its code loaded, at the first call. */
  watches: () => Promise<WatchTable>;
}

/** Each takes a file descriptor and some memory of a small guest; one client opens 200 at most. */
const maxConnections = 1024;

/** Longer than any pause of a host that keeps its connections; the check timer must not wake an idle guest. */
const hostKeepsConnectionsMs = 86_400_000;

/** Listens. @throws the listen error. */
export async function serveHttp(parts: AgentParts): Promise<{ server: Server; port: number }> {
  const server = createServer({
    keepAliveTimeout: hostKeepsConnectionsMs,
    requestTimeout: 0,
    headersTimeout: 0,
    connectionsCheckingInterval: hostKeepsConnectionsMs,
  });
  server.maxConnections = maxConnections;
  server.on('request', (request: IncomingMessage, response: ServerResponse) => {
    route(parts, request, response).catch((error) => {
      const failure = asConnectError(error);
      if (response.headersSent) response.destroy();
      else sendJson(response, connectStatus[failure.code], { code: failure.code, message: failure.message });
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(parts.settings.httpPort, parts.settings.httpHost, resolve);
  });
  return { server, port: (server.address() as AddressInfo).port };
}

async function route(parts: AgentParts, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = URL.parse(request.url ?? '/', 'http://agent');
  if (url === null) throw new ConnectError('invalid_argument', 'the request target is malformed');
  const target = `${request.method} ${url.pathname}`;
  if (target === 'GET /health') return void response.writeHead(204).end();
  await parts.state.released;
  // Its connection was inherited by a clone, and ended there.
  if (request.socket.destroyed) return;
  if (parts.state.state !== 'ready')
    throw new ConnectError('unavailable', 'this VM has not been handed out yet');
  if (url.pathname.startsWith('/_thaw/')) return await routeInternal(parts, target, request, response);
  await routeSandbox(parts, url, request, response);
}

async function routeInternal(
  parts: AgentParts,
  target: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  if (!equalSecrets(request.headers[secretHeader], parts.state.secret))
    throw new ConnectError('unauthenticated', 'wrong secret');
  switch (target) {
    case 'PUT /_thaw/bundle':
      return await putBundle(parts.settings, parts.runner, request, response);
    case 'POST /_thaw/runner':
      return await startRunner(parts, request, response);
    case 'POST /_thaw/init':
      return await initSandbox(parts.state, request, response);
    default:
      throw new ConnectError('not_found', `no such route: ${target}`);
  }
}
