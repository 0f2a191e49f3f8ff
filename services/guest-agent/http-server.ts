// Owns the agent's HTTP door: which route, whether this VM may serve at all, and whether this caller may call.
// Refuses to own what routes do (the services).
// Invariant: outside state `ready` nothing but GET /health is served (held: requests wait), and no route below runs without its credential.
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type SandboxInit, secretHeader } from '../../shared/agent-protocol.ts';
import { ConnectError, connectStatus } from '../../shared/connect-frames.ts';
import { basicUser, equalSecrets, hasAccessToken, signatureFault } from './access.ts';
import type { AgentState } from './agent-state.ts';
import { callerOf } from './caller.ts';
import {
  asConnectError,
  type Message,
  type ServerStream,
  sendJson,
  serveStream,
  serveUnary,
} from './connect-json.ts';
import { downloadFile, fileFailure, sendFileError } from './files-routes.ts';
import { uploadFiles } from './files-upload.ts';
import { listDirectory, makeDirectory, moveEntry, removeEntry, statEntry } from './filesystem-service.ts';
import type { FunctionRunner } from './function-runner.ts';
import { initSandbox, putBundle, startRunner } from './internal-routes.ts';
import {
  closeStdin,
  connectProcess,
  listProcesses,
  sendInput,
  sendSignal,
  startProcess,
  updateProcess,
} from './process-service.ts';
import type { ProcessTable } from './process-table.ts';
import type { Settings } from './settings.ts';

// Not by import: that evaluates every export, and one of them loads undici, which costs each guest 12 MB.
const { createServer } = process.getBuiltinModule('node:http');

export interface AgentParts {
  settings: Settings;
  state: AgentState;
  processes: ProcessTable;
  runner: FunctionRunner;
}

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
  const url = new URL(request.url ?? '/', 'http://agent');
  const target = `${request.method} ${url.pathname}`;
  if (target === 'GET /health') return void response.writeHead(204).end();
  await parts.state.released;
  // Its connection was inherited by a clone, and ended there.
  if (request.socket.destroyed) return;
  if (parts.state.state !== 'ready')
    throw new ConnectError('unavailable', 'this VM has not been handed out yet');
  if (url.pathname.startsWith('/_thaw/')) return await routeInternal(parts, target, request, response);
  const { sandbox } = parts.state;
  if (url.pathname === '/files') return await routeFiles(parts, sandbox, url.searchParams, request, response);
  if (sandbox === undefined || !hasAccessToken(request, sandbox.accessToken))
    throw new ConnectError('unauthenticated', 'unauthorized access: a valid X-Access-Token is needed');
  await routeConnect(parts, sandbox, target, request, response);
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
      return await startRunner(parts.runner, request, response);
    case 'POST /_thaw/init':
      return await initSandbox(parts.state, request, response);
    default:
      throw new ConnectError('not_found', `no such route: ${target}`);
  }
}

async function routeFiles(
  { settings }: AgentParts,
  sandbox: SandboxInit | undefined,
  query: URLSearchParams,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  if (request.method !== 'GET' && request.method !== 'POST')
    return sendFileError(response, 405, 'only GET and POST');
  const operation = request.method === 'GET' ? 'read' : 'write';
  const fault = hasAccessToken(request, sandbox?.accessToken)
    ? undefined
    : signatureFault(query, operation, sandbox?.accessToken);
  if (sandbox === undefined || fault !== undefined)
    return sendFileError(response, 401, fault ?? 'not a sandbox');
  try {
    const caller = callerOf(settings, sandbox, query.get('username') || basicUser(request));
    await (operation === 'read' ? downloadFile : uploadFiles)(caller, query, request, response);
  } catch (error) {
    sendFileError(response, ...fileFailure(error, query.get('path') ?? ''));
  }
}

type Unary = (
  parts: AgentParts,
  message: Message,
  sandbox: SandboxInit,
  user: string,
) => Promise<object> | object;
type Stream = (
  parts: AgentParts,
  message: Message,
  stream: ServerStream,
  sandbox: SandboxInit,
  user: string,
) => Promise<void> | void;

const onFiles =
  (method: (caller: ReturnType<typeof callerOf>, message: Message) => Promise<object>): Unary =>
  (parts, message, sandbox, user) =>
    method(callerOf(parts.settings, sandbox, user), message);

const notYet = (): never => {
  throw new ConnectError('unimplemented', 'this version of Thaw does not offer this method');
};

const unaryMethods: Record<string, Unary> = {
  '/process.Process/List': ({ processes }) => listProcesses(processes),
  '/process.Process/SendInput': ({ processes }, message) => sendInput(processes, message),
  '/process.Process/CloseStdin': ({ processes }, message) => closeStdin(processes, message),
  '/process.Process/SendSignal': ({ processes }, message) => sendSignal(processes, message),
  '/process.Process/Update': updateProcess,
  '/filesystem.Filesystem/Stat': onFiles(statEntry),
  '/filesystem.Filesystem/MakeDir': onFiles(makeDirectory),
  '/filesystem.Filesystem/Move': onFiles(moveEntry),
  '/filesystem.Filesystem/ListDir': onFiles(listDirectory),
  '/filesystem.Filesystem/Remove': onFiles(removeEntry),
  '/filesystem.Filesystem/CreateWatcher': notYet,
  '/filesystem.Filesystem/GetWatcherEvents': notYet,
  '/filesystem.Filesystem/RemoveWatcher': notYet,
};

const streamMethods: Record<string, Stream> = {
  '/process.Process/Start': ({ settings, processes }, message, stream, sandbox, user) =>
    startProcess(processes, callerOf(settings, sandbox, user), sandbox, message, stream),
  '/process.Process/Connect': ({ processes }, message, stream) => connectProcess(processes, message, stream),
  '/process.Process/StreamInput': notYet,
  '/filesystem.Filesystem/WatchDir': notYet,
};

async function routeConnect(
  parts: AgentParts,
  sandbox: SandboxInit,
  target: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = target.startsWith('POST ') ? target.slice('POST '.length) : '';
  const user = basicUser(request);
  if (Object.hasOwn(unaryMethods, path)) {
    const unary = unaryMethods[path]!;
    return await serveUnary(request, response, (message) => unary(parts, message, sandbox, user));
  }
  if (!Object.hasOwn(streamMethods, path)) throw new ConnectError('not_found', `no such route: ${target}`);
  const stream = streamMethods[path]!;
  await serveStream(request, response, async (message, answer) =>
    stream(parts, message, answer, sandbox, user),
  );
}
