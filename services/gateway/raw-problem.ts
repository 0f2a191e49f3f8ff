// Owns failures on the paths that bypass fastify: problem details straight onto a response or an upgrade's socket.
import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { ThawError } from '../../shared/errors.ts';
import { problemHeadersOf, problemOf } from '../../shared/problem.ts';
import { requestIdOf } from './request-identity.ts';

/** Answers with problem details, or cuts the connection when an answer has begun. */
export function sendProblem(response: ServerResponse, error: ThawError, requestId: string): void {
  sendJson(response, error.status, problemHeadersOf(error, requestId), problemOf(error, requestId));
}

export function sendJson(
  response: ServerResponse,
  status: number,
  headers: Record<string, string>,
  body: unknown,
): void {
  if (response.headersSent || response.destroyed) {
    response.destroy();
    return;
  }
  const text = JSON.stringify(body);
  response.writeHead(status, { ...headers, 'content-length': Buffer.byteLength(text) });
  response.end(text);
}

/** An upgrade has no response object: the answer is written by hand and the connection ends with it. */
export function refuseUpgrade(
  socket: Duplex,
  status: number,
  headers: Record<string, string>,
  body: unknown,
): void {
  if (socket.destroyed || !socket.writable) return;
  const text = JSON.stringify(body);
  const lines = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}`,
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
    `content-length: ${Buffer.byteLength(text)}`,
    'connection: close',
  ];
  socket.end(`${lines.join('\r\n')}\r\n\r\n${text}`);
}

const malformed: Record<string, string> = {
  HPE_HEADER_OVERFLOW: 'the headers are larger than this server takes',
  ERR_HTTP_REQUEST_TIMEOUT: 'the headers did not come in time',
};

/** What the parser refuses has no route and no request yet. */
export function refuseMalformed(cause: NodeJS.ErrnoException, socket: Socket): void {
  // An answer to the request before may be under way, and this must not become a part of it.
  if (cause.code === 'ECONNRESET' || socket.bytesWritten > 0) {
    socket.destroy();
    return;
  }
  const error = new ThawError('bad-request', malformed[cause.code ?? ''] ?? 'this is not HTTP');
  const requestId = requestIdOf({});
  refuseUpgrade(socket, error.status, problemHeadersOf(error, requestId), problemOf(error, requestId));
}

export function hasBody(request: IncomingMessage): boolean {
  const { headers } = request;
  if (headers['transfer-encoding'] !== undefined) return true;
  const length = headers['content-length'];
  return length !== undefined && length !== '0';
}

/** Enough for a client to finish sending what it had begun; more is not worth reading. */
const maxDiscardedBytes = 64 * 1024 * 1024;

/** The rest of a refused body is read and dropped, up to a limit: a client that is cut off while it sends rarely reads the answer. */
export function discardBody(request: IncomingMessage): void {
  if (request.complete || request.destroyed) return;
  let leftBytes = maxDiscardedBytes;
  request.on('data', (chunk: Buffer) => {
    leftBytes -= chunk.length;
    if (leftBytes < 0) request.socket.destroy();
  });
  request.on('error', () => {});
  // Whoever read it before may have left it paused.
  request.resume();
}
