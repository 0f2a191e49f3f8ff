// Owns the routes of a sandbox's user: which there are, which credential each takes, and for whom it acts.
// Refuses to own what they do (the services) and the host's own routes (internal-routes.ts).
// Invariant: nothing below runs, and nothing of the sandbox is said, without its credential.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { ConnectError } from '../../shared/connect-frames.ts';
import { basicUser, hasAccessToken, signatureFault } from './access.ts';
import type { SandboxFacts } from './agent-state.ts';
import { type Caller, callerOf } from './caller.ts';
import {
  type Message,
  parseMessage,
  readBody,
  type ServerStream,
  sendJson,
  serveClientStream,
  serveStream,
  serveUnary,
  textField,
} from './connect-json.ts';
import { downloadFile, fileFailure, sendFileError } from './files-routes.ts';
import { uploadFiles } from './files-upload.ts';
import { listDirectory, makeDirectory, moveEntry, removeEntry, statEntry } from './filesystem-service.ts';
import type { AgentParts } from './http-server.ts';
import {
  closeStdin,
  connectProcess,
  listProcesses,
  sendInput,
  sendSignal,
  startProcess,
  streamInput,
  updateProcess,
} from './process-service.ts';

/** What every method may need: who calls, and what is asked. */
interface Call extends AgentParts {
  sandbox: SandboxFacts;
  /** As the request names it, '' for the default. */
  user: string;
  request: IncomingMessage;
  response: ServerResponse;
}

const callerIn = ({ settings, sandbox, user }: Call): Caller => callerOf(settings, sandbox, user);

export async function routeSandbox(
  parts: AgentParts,
  url: URL,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const { sandbox } = parts.state;
  const call = { ...parts, user: basicUser(request), request, response };
  if (url.pathname === '/files') return await routeFiles(call, sandbox, url.searchParams);
  if (sandbox === undefined || !hasAccessToken(request, sandbox.accessToken))
    throw new ConnectError('unauthenticated', 'unauthorized access: a valid X-Access-Token is needed');
  const target = `${request.method} ${url.pathname}`;
  if (Object.hasOwn(plainRoutes, target)) return await servePlain({ ...call, sandbox }, plainRoutes[target]!);
  await routeConnect({ ...call, sandbox }, target);
}

async function routeFiles(
  call: Omit<Call, 'sandbox'>,
  sandbox: SandboxFacts | undefined,
  query: URLSearchParams,
): Promise<void> {
  const { request, response } = call;
  if (request.method !== 'GET' && request.method !== 'POST')
    return sendFileError(response, 405, 'only GET and POST');
  const operation = request.method === 'GET' ? 'read' : 'write';
  const fault = hasAccessToken(request, sandbox?.accessToken)
    ? undefined
    : signatureFault(query, operation, sandbox?.accessToken);
  if (sandbox === undefined || fault !== undefined)
    return sendFileError(response, 401, fault ?? 'not a sandbox');
  try {
    const caller = callerIn({ ...call, sandbox, user: query.get('username') || call.user });
    await (operation === 'read' ? downloadFile : uploadFiles)(caller, query, request, response);
  } catch (error) {
    sendFileError(response, ...fileFailure(error, query.get('path') ?? ''));
  }
}

// --- Routes with plain JSON answers, and errors whose code is the status ---

type PlainRoute = (call: Call) => Promise<object> | object;

const plainRoutes: Record<string, PlainRoute> = {
  'GET /envs': ({ sandbox }) => sandbox.envVars,
  'GET /metrics': async ({ settings }) => {
    const { readMetrics } = await import('./guest-metrics.ts');
    return await readMetrics(settings.mode === 'guest' ? '/' : settings.rootDir);
  },
  'POST /files/compose': async (call) => {
    const message = parseMessage(await readBody(call.request));
    const caller = callerIn({ ...call, user: textField(message, 'username') || call.user });
    const { composeFiles } = await import('./files-compose.ts');
    return await composeFiles(caller, message);
  },
};

async function servePlain(call: Call, route: PlainRoute): Promise<void> {
  try {
    sendJson(call.response, 200, await route(call));
  } catch (error) {
    const { path } = error as NodeJS.ErrnoException;
    sendFileError(call.response, ...fileFailure(error, path ?? ''));
  }
}

// --- Connect methods ---

type Unary = (call: Call, message: Message) => Promise<object> | object;
type Stream = (call: Call, message: Message, stream: ServerStream) => Promise<void> | void;
type ClientStream = (call: Call, messages: AsyncIterable<Message>) => Promise<object>;

const unaryMethods: Record<string, Unary> = {
  '/process.Process/List': ({ processes }) => listProcesses(processes),
  '/process.Process/SendInput': ({ processes }, message) => sendInput(processes, message),
  '/process.Process/CloseStdin': ({ processes }, message) => closeStdin(processes, message),
  '/process.Process/SendSignal': ({ processes }, message) => sendSignal(processes, message),
  '/process.Process/Update': ({ processes }, message) => updateProcess(processes, message),
  '/filesystem.Filesystem/Stat': (call, message) => statEntry(callerIn(call), message),
  '/filesystem.Filesystem/MakeDir': (call, message) => makeDirectory(callerIn(call), message),
  '/filesystem.Filesystem/Move': (call, message) => moveEntry(callerIn(call), message),
  '/filesystem.Filesystem/ListDir': (call, message) => listDirectory(callerIn(call), message),
  '/filesystem.Filesystem/Remove': (call, message) => removeEntry(callerIn(call), message),
  '/filesystem.Filesystem/CreateWatcher': async (call, message) =>
    (await call.watches()).createWatcher(callerIn(call), message),
  '/filesystem.Filesystem/GetWatcherEvents': async ({ watches }, message) =>
    (await watches()).watcherEvents(message),
  '/filesystem.Filesystem/RemoveWatcher': async ({ watches }, message) =>
    (await watches()).removeWatcher(message),
};

const streamMethods: Record<string, Stream> = {
  '/process.Process/Start': (call, message, stream) =>
    startProcess(call.processes, callerIn(call), call.sandbox, message, stream),
  '/process.Process/Connect': ({ processes }, message, stream) => connectProcess(processes, message, stream),
  '/filesystem.Filesystem/WatchDir': async (call, message, stream) =>
    (await call.watches()).watchDirectory(callerIn(call), message, stream),
};

const clientStreamMethods: Record<string, ClientStream> = {
  '/process.Process/StreamInput': ({ processes }, messages) => streamInput(processes, messages),
};

/** Every route that takes the access token and nothing else. */
export const tokenRoutes: readonly string[] = [
  ...Object.keys(plainRoutes),
  ...[unaryMethods, clientStreamMethods, streamMethods].flatMap(Object.keys).map((path) => `POST ${path}`),
];

async function routeConnect(call: Call, target: string): Promise<void> {
  const { request, response } = call;
  const path = target.startsWith('POST ') ? target.slice('POST '.length) : '';
  const unary = methodIn(unaryMethods, path);
  if (unary !== undefined) return await serveUnary(request, response, (message) => unary(call, message));
  const clientStream = methodIn(clientStreamMethods, path);
  if (clientStream !== undefined)
    return await serveClientStream(request, response, (messages) => clientStream(call, messages));
  const stream = methodIn(streamMethods, path);
  if (stream === undefined) throw new ConnectError('not_found', `no such route: ${target.slice(0, 256)}`);
  await serveStream(request, response, async (message, answer) => stream(call, message, answer));
}

function methodIn<T>(methods: Record<string, T>, path: string): T | undefined {
  return Object.hasOwn(methods, path) ? methods[path] : undefined;
}
