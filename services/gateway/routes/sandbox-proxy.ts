// Owns the data plane: requests for a sandbox's own ports, routed by header or by host name, streamed both ways.
// Refuses to own the agent's access tokens: it checks X-Access-Token itself. Invariant: the agent's internal routes cannot be
// reached from here, however their path is written; ports that are not public open to their traffic token alone.
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { agentPort } from '../../../shared/agent-protocol.ts';
import { ThawError } from '../../../shared/errors.ts';
import { sandboxIdPattern } from '../../../shared/ids.ts';
import { equalSecrets } from '../../../shared/secrets.ts';
import { dataPlaneFailureOf } from '../e2b-errors.ts';
import {
  type ForwardOptions,
  inwardHeaders,
  outwardHeaders,
  rewriteUpgradeHeaders,
} from '../forwarded-headers.ts';
import { type GatewayContext, requireRoom } from '../gateway-context.ts';
import { maskedHost } from '../network-config.ts';
import { discardBody, refuseUpgrade, sendJson } from '../raw-problem.ts';
import { requestIdOf } from '../request-identity.ts';
import type { SandboxRecord } from '../state/state-store.ts';
import { beginResponse, bodyToGuest, streamResponse } from '../stream-response.ts';

export interface SandboxTarget {
  sandboxId: string;
  port: number;
}

const sandboxHost = /^([0-9]{1,5})-(i[0-9a-z]{20})\./i;

/** Where a request for a sandbox goes; undefined when it is none. A name says more than headers, which any page can send. */
export function sandboxTargetOf({ headers }: IncomingMessage): SandboxTarget | undefined {
  const byName = sandboxHost.exec(headers.host ?? '');
  if (byName !== null) return { sandboxId: byName[2]!.toLowerCase(), port: Number(byName[1]) };
  const sandboxId = headers['e2b-sandbox-id'];
  if (sandboxId === undefined) return undefined;
  const port = headers['e2b-sandbox-port'];
  return { sandboxId: String(sandboxId), port: port === undefined ? agentPort : Number(port) };
}

const internalRoutes = new Set([
  'init',
  'freeze',
  'unfreeze',
  'collapse',
  'fsfreeze',
  'fsthaw',
  'upgrade',
  '_thaw',
]);

/** True for the agent's internal routes, in any spelling a server might read as one. */
export function isInternalPath(url: string): boolean {
  let path = url.split('?', 1)[0]!;
  // An absolute-form target names its host before the path.
  path = path.replace(/^[a-z][a-z0-9+.-]*:\/\/[^/]*/i, '');
  for (let round = 0; round < 3 && path.includes('%'); round++) path = decoded(path);
  const segments: string[] = [];
  for (const segment of path.split(/[/\\]/)) {
    if (segment === '' || segment === '.') continue;
    if (segment === '..') segments.pop();
    else segments.push(segment.split(/[;?#]/, 1)[0]!.toLowerCase());
  }
  return internalRoutes.has(segments[0] ?? '');
}

function decoded(path: string): string {
  return path.replace(/%([0-9a-f]{2})/gi, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}

function check(context: GatewayContext, target: SandboxTarget, url: string): void {
  requireRoom(context);
  if (!sandboxIdPattern.test(target.sandboxId))
    throw new ThawError('sandbox-not-found', 'the sandbox was not found');
  if (!Number.isInteger(target.port) || target.port < 1 || target.port > 65_535)
    throw new ThawError('bad-request', 'E2b-Sandbox-Port: expected a number from 1 to 65535');
  if (target.port === agentPort && isInternalPath(url)) throw new ThawError('not-found', 'no such route');
}

/** Before anything is done for the caller: a guess must not even wake a sandbox. */
function requireTrafficToken(
  { trafficAccessToken: expected }: SandboxRecord,
  { port }: SandboxTarget,
  headers: IncomingHttpHeaders,
): void {
  // The agent has a token of its own.
  if (expected === undefined || port === agentPort) return;
  const given = headers[trafficTokenHeader];
  if (equalSecrets(given, expected)) return;
  const fault = given === undefined ? 'is missing' : 'is not that of this sandbox';
  throw new ThawError(
    'forbidden',
    `this sandbox takes traffic only with its token: the header ${trafficTokenHeader} ${fault}`,
  );
}

/** A paused sandbox that asked for it goes on when somebody wants something of it. */
async function wake({ sandboxes }: GatewayContext, record: SandboxRecord): Promise<void> {
  if (record.state === 'paused' && record.autoResume) await sandboxes.connect(record.sandboxId, autoResumeMs);
}

/** All that stands before a request to a sandbox. @returns how its headers are to be passed on. */
async function admit(
  context: GatewayContext,
  target: SandboxTarget,
  request: IncomingMessage,
  requestId: string,
): Promise<ForwardOptions> {
  check(context, target, request.url!);
  const record = context.state.sandboxes.get(target.sandboxId);
  // Without its record nobody knows who may: what a node has besides is no client's.
  if (record === undefined) throw new ThawError('sandbox-not-found', 'the sandbox was not found');
  requireTrafficToken(record, target, request.headers);
  await wake(context, record);
  const mask = target.port === agentPort ? undefined : record.network?.maskRequestHost;
  return {
    requestId,
    trustForwarded: context.config.trustForwarded,
    dropCredentials: routingHeaders,
    host: mask && maskedHost(mask, target.port),
  };
}

/** What E2B gives a sandbox that comes back on its own. */
const autoResumeMs = 300_000;

const trafficTokenHeader = 'e2b-traffic-access-token';
const routingHeaders = ['e2b-sandbox-id', 'e2b-sandbox-port', trafficTokenHeader] as const;

export async function proxyToSandbox(
  context: GatewayContext,
  target: SandboxTarget,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const requestId = requestIdOf(request.headers);
  const abort = new AbortController();
  response.on('close', () => {
    if (!response.writableFinished) abort.abort();
  });
  try {
    const forward = await admit(context, target, request, requestId);
    const answer = await context.node.sandboxRequest(target.sandboxId, target.port, {
      method: request.method!,
      path: request.url!,
      headers: inwardHeaders(request, forward),
      body: bodyToGuest(request, response),
      signal: abort.signal,
      timeoutMs: context.config.sandboxResponseTimeoutMs,
    });
    const headers = outwardHeaders(answer.headers);
    headers.push('x-request-id', requestId);
    beginResponse(response, answer, answer.status, headers);
    streamResponse(answer.body, response, Number(answer.headers['content-length'] ?? -1));
  } catch (cause) {
    if (abort.signal.aborted) return void response.destroy();
    logUnexpected(context, cause, requestId, target);
    const failure = dataPlaneFailureOf(cause, requestId, shown(target.sandboxId), target.port);
    sendJson(response, failure.status, failure.headers, failure.body);
    discardBody(request);
  }
}

export async function upgradeToSandbox(
  context: GatewayContext,
  target: SandboxTarget,
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): Promise<void> {
  const requestId = requestIdOf(request.headers);
  try {
    rewriteUpgradeHeaders(request, await admit(context, target, request, requestId));
    await context.node.sandboxUpgrade(target.sandboxId, target.port, request, socket, head);
  } catch (cause) {
    logUnexpected(context, cause, requestId, target);
    const failure = dataPlaneFailureOf(cause, requestId, shown(target.sandboxId), target.port);
    refuseUpgrade(socket, failure.status, failure.headers, failure.body);
  }
}

function logUnexpected(
  context: GatewayContext,
  cause: unknown,
  requestId: string,
  target: SandboxTarget,
): void {
  if (cause instanceof ThawError && cause.code !== 'internal') return;
  context.log.error(
    { requestId, sandboxId: shown(target.sandboxId), err: cause },
    'a sandbox request failed',
  );
}

/** Whatever the client sent as an id comes back in the body, but not a page of it. */
const shown = (sandboxId: string): string => sandboxId.slice(0, 64);
