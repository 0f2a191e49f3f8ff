// Owns invocations: ANY /fn/NAME[@VERSION]/PATH, straight on the HTTP server without the framework's per-request cost.
// Refuses to own VMs and waiting for them (the node). Invariant: nothing durable is written and nothing is buffered on
// this path; the caller gets the function's answer or one registered error, and a lost client ends the work.
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Duplex } from 'node:stream';
import { functionErrorHeader } from '../../../shared/agent-protocol.ts';
import { ThawError } from '../../../shared/errors.ts';
import { functionNamePattern, versionPattern } from '../../../shared/ids.ts';
import { asThawError, problemHeadersOf, problemOf } from '../../../shared/problem.ts';
import { requireApiKey } from '../authenticate.ts';
import { inwardHeaders, outwardHeaders, rewriteUpgradeHeaders } from '../forwarded-headers.ts';
import { type GatewayContext, requireRoom } from '../gateway-context.ts';
import { observeInvocation, observeStages } from '../invocation-metrics.ts';
import type { FunctionVersion, GuestResponse } from '../node-client.ts';
import { discardBody, refuseUpgrade, sendProblem } from '../raw-problem.ts';
import { requestIdOf } from '../request-identity.ts';
import { beginResponse, bodyToGuest, streamResponse } from '../stream-response.ts';

export const invokePrefix = '/fn/';

export interface Target {
  name: string;
  version: number | undefined;
  /** Path with query, as the guest sees it. */
  path: string;
}

/** Splits a request target that begins with `/fn/`. @throws ThawError `bad-name`. */
export function targetOf(url: string): Target {
  let end = invokePrefix.length;
  while (end < url.length && url[end] !== '/' && url[end] !== '?') end++;
  const word = url.slice(invokePrefix.length, end);
  const rest = url.slice(end);
  const path = rest === '' || rest[0] === '?' ? `/${rest}` : rest;
  const at = word.indexOf('@');
  const name = at === -1 ? word : word.slice(0, at);
  if (!functionNamePattern.test(name))
    throw new ThawError('bad-name', `a function's name must match ${functionNamePattern.source}`);
  if (at === -1) return { name, version: undefined, path };
  const version = word.slice(at + 1);
  if (!versionPattern.test(version))
    throw new ThawError('bad-name', 'a version is a positive whole number: NAME@VERSION');
  return { name, version: Number(version), path };
}

export interface InvokeRoute {
  handle(request: IncomingMessage, response: ServerResponse): void;
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void>;
}

export function invokeRoute(context: GatewayContext): InvokeRoute {
  return {
    handle: (request, response) => void handle(context, request, response),
    upgrade: (request, socket, head) => upgrade(context, request, socket, head),
  };
}

function find(context: GatewayContext, target: Target): FunctionVersion {
  const version = context.state.functions.resolve(target.name, target.version);
  if (version !== undefined) return version;
  const label = target.version === undefined ? target.name : `${target.name}@${target.version}`;
  throw new ThawError('function-not-found', `no ready version of ${label} is deployed`);
}

/** What is asked for, by one who may have it, while there is room. @throws ThawError with what the caller did wrong. */
function admit(context: GatewayContext, request: IncomingMessage) {
  requireRoom(context);
  const target = targetOf(request.url!);
  const version = find(context, target);
  const dropCredentials =
    version.manifest.auth === 'key' ? requireApiKey(request.headers, context.state.keys) : undefined;
  return { target, version, dropCredentials };
}

async function handle(
  context: GatewayContext,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const startedAtMs = performance.now();
  const requestId = requestIdOf(request.headers);
  const abort = new AbortController();
  response.on('close', () => {
    if (!response.writableFinished) abort.abort();
  });
  let dispatched = false;
  try {
    const { target, version, dropCredentials } = admit(context, request);
    const { trustForwarded } = context.config;
    const guestRequest = {
      method: request.method!,
      path: target.path,
      headers: inwardHeaders(request, { requestId, trustForwarded, dropCredentials }),
      body: bodyToGuest(request, response),
      signal: abort.signal,
      timeoutMs: version.manifest.timeoutMs,
    };
    const placedAtMs = performance.now();
    dispatched = true;
    const answer = await context.node.invoke(version, guestRequest);
    answerWith(response, answer, requestId, startedAtMs, placedAtMs);
  } catch (error) {
    const cause = dispatched ? duringResume(context, error) : error;
    fail(context, request, response, cause, { requestId, startedAtMs, gone: abort.signal.aborted });
  }
}

function answerWith(
  response: ServerResponse,
  answer: GuestResponse,
  requestId: string,
  startedAtMs: number,
  placedAtMs: number,
): void {
  const { tier, stages, status } = answer;
  const placeMs = placedAtMs - startedAtMs;
  const totalMs = performance.now() - startedAtMs;
  const headers = outwardHeaders(answer.headers);
  headers.push(
    'server-timing',
    `queue;dur=${ms(stages.queueMs)}, place;dur=${ms(placeMs)}, lease;dur=${ms(stages.leaseMs)}, ` +
      `exec;dur=${ms(stages.execMs)}, total;dur=${ms(totalMs)}, tier;desc=${tier}`,
    'x-thaw-tier',
    tier,
    'x-request-id',
    requestId,
  );
  beginResponse(response, answer, status, headers);
  streamResponse(answer.body, response, Number(answer.headers['content-length'] ?? -1));
  const failed = answer.headers[functionErrorHeader] !== undefined;
  observeInvocation(tier, failed ? 'function-error' : 'ok', totalMs);
  observeStages(stages.queueMs, placeMs, stages.leaseMs, stages.execMs);
}

/** Microseconds are as fine as the clocks on both sides agree. */
const ms = (value: number): string => (Math.round(value * 1_000) / 1_000).toString();

function fail(
  context: GatewayContext,
  request: IncomingMessage,
  response: ServerResponse,
  cause: unknown,
  about: { requestId: string; startedAtMs: number; gone: boolean },
): void {
  const { requestId, startedAtMs, gone } = about;
  const error = asThawError(cause);
  const totalMs = performance.now() - startedAtMs;
  observeInvocation('none', gone ? 'client-gone' : error.code, totalMs);
  if (gone) {
    response.destroy();
    return;
  }
  if (error.code === 'internal') context.log.error({ requestId, err: cause }, 'an invocation failed');
  sendProblem(response, error, requestId);
  discardBody(request);
}

/** After a start the node may not know yet what the state knows: that is a wait, not an absence. */
function duringResume(context: GatewayContext, error: unknown): unknown {
  const unknown = error instanceof ThawError && error.code === 'function-not-found';
  if (!unknown || !context.traffic.resuming) return error;
  return new ThawError('no-capacity', 'the function is being made ready after a start', {
    retryAfterSeconds: 2,
  });
}

async function upgrade(
  context: GatewayContext,
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): Promise<void> {
  const requestId = requestIdOf(request.headers);
  try {
    const { target, version, dropCredentials } = admit(context, request);
    const { trustForwarded } = context.config;
    rewriteUpgradeHeaders(request, { requestId, trustForwarded, dropCredentials });
    await context.node.upgrade(version, request, target.path, socket, head).catch((error) => {
      throw duringResume(context, error);
    });
  } catch (cause) {
    const error = asThawError(cause);
    if (error.code === 'internal') context.log.error({ requestId, err: cause }, 'an upgrade failed');
    refuseUpgrade(socket, error.status, problemHeadersOf(error, requestId), problemOf(error, requestId));
  }
}
