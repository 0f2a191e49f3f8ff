// Owns which headers cross the gateway, in both directions.
// Invariant: hop-by-hop fields (RFC 9110, 7.6.1) end here; a client can speak no internal header to a guest, and
// a guest cannot speak in the platform's name.
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { functionErrorHeader } from '../../shared/agent-protocol.ts';
import { isTraceparent, newTraceparent } from './request-identity.ts';

const internalPrefix = 'x-thaw-';
/** The one thing a runner may say about itself: the function's own code failed. */
const handlerThrew = 'handler-threw';

const hopByHop = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'proxy-authenticate',
  'proxy-authorization',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  // Answered by this hop's HTTP server.
  'expect',
]);

/** Field names that `Connection` nominates; undefined in the usual case of none. */
function nominated(connection: string | string[] | undefined): Set<string> | undefined {
  if (connection === undefined || connection === 'keep-alive' || connection === 'close') return undefined;
  const names = String(connection)
    .toLowerCase()
    .split(',')
    .map((name) => name.trim());
  return new Set(names);
}

const isInternal = (name: string): boolean => name.charCodeAt(0) === 120 && name.startsWith(internalPrefix);

export interface ForwardOptions {
  requestId: string;
  trustForwarded: boolean;
  /** Credentials that were meant for Thaw and must not reach the guest. */
  dropCredentials?: readonly string[] | undefined;
  /** What the guest shall see as its Host; the caller's own is in X-Forwarded-Host. */
  host?: string | undefined;
}

/** The headers a guest sees. */
export function inwardHeaders(request: IncomingMessage, options: ForwardOptions): IncomingHttpHeaders {
  const given = request.headers;
  const named = nominated(given.connection);
  const headers: IncomingHttpHeaders = {};
  for (const name in given) {
    if (hopByHop.has(name) || isInternal(name) || named?.has(name)) continue;
    headers[name] = given[name];
  }
  for (const name of options.dropCredentials ?? []) delete headers[name];
  headers['x-request-id'] = options.requestId;
  setTraceContext(headers);
  setForwarded(headers, request, options.trustForwarded);
  if (options.host !== undefined) headers.host = options.host;
  return headers;
}

function setTraceContext(headers: IncomingHttpHeaders): void {
  const given = headers.traceparent;
  if (typeof given === 'string' && isTraceparent(given)) return;
  headers.traceparent = newTraceparent();
  delete headers.tracestate;
}

function setForwarded(headers: IncomingHttpHeaders, request: IncomingMessage, trusted: boolean): void {
  const peer = request.socket.remoteAddress ?? 'unknown';
  const before = trusted ? headers['x-forwarded-for'] : undefined;
  headers['x-forwarded-for'] = before === undefined ? peer : `${before}, ${peer}`;
  const encrypted = 'encrypted' in request.socket;
  if (!trusted || headers['x-forwarded-proto'] === undefined)
    headers['x-forwarded-proto'] = encrypted ? 'https' : 'http';
  if (!trusted || headers['x-forwarded-host'] === undefined)
    headers['x-forwarded-host'] = request.headers.host ?? '';
  if (!trusted) delete headers.forwarded;
}

/** The address that the client itself used: behind a trusted proxy, the one that the proxy names. */
export function clientOrigin(request: IncomingMessage, trusted: boolean): string {
  const headers = { ...request.headers };
  setForwarded(headers, request, trusted);
  const first = (name: string) => String(headers[name]).split(',', 1)[0]!.trim();
  return `${first('x-forwarded-proto')}://${first('x-forwarded-host')}`;
}

/** Puts the rewritten headers of an upgrade where both kinds of reader look; the handshake's own fields stay. */
export function rewriteUpgradeHeaders(request: IncomingMessage, options: ForwardOptions): void {
  const { connection, upgrade } = request.headers;
  const headers = inwardHeaders(request, options);
  const rewritten: IncomingHttpHeaders = { ...headers, connection: 'Upgrade', upgrade };
  if (connection === undefined) delete rewritten.connection;
  request.headers = rewritten;
  request.rawHeaders = Object.entries(rewritten).flatMap(([name, value]) =>
    (Array.isArray(value) ? value : [value ?? '']).flatMap((item) => [name, item]),
  );
}

/** The guest's response headers as the flat list that `writeHead` takes fastest; values are bytes as Latin-1. */
export function outwardHeaders(given: Record<string, string | string[]>): string[] {
  const named = nominated(given.connection);
  const headers: string[] = [];
  for (const name in given) {
    if (hopByHop.has(name) || named?.has(name)) continue;
    const value = given[name]!;
    if (isInternal(name) && !(name === functionErrorHeader && value === handlerThrew)) continue;
    // The platform's own values of these replace the guest's.
    if (name === 'x-request-id') continue;
    if (typeof value === 'string') headers.push(name, value);
    else for (const item of value) headers.push(name, item);
  }
  return headers;
}
