// Owns moving bodies between a client and a guest: backpressure both ways, nothing kept.
// Invariant: the client never mistakes a broken body for a whole one: a failure after the headers cuts the connection.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { PassThrough, type Readable } from 'node:stream';
import { ThawError } from '../../shared/errors.ts';
import { discardBody, hasBody } from './raw-problem.ts';

/**
 * The client's body on its way to the guest, null when there is none. A guest may answer before it has read all: what is
 * left then is dropped, or the client's connection would never serve its next request.
 */
export function bodyToGuest(request: IncomingMessage, response: ServerResponse): Readable | null {
  if (!hasBody(request)) return null;
  // Not the request itself: who carries it on ends it when the guest is done, and the connection with it.
  const body = new PassThrough();
  body.on('error', () => {});
  request.once('error', (error) => body.destroy(error)).pipe(body);
  response.once('finish', () => {
    request.unpipe(body);
    body.destroy();
    discardBody(request);
  });
  return body;
}

/** Gives the guest's status and headers to the client. @throws ThawError `guest-unreachable` when they are not valid HTTP. */
export function beginResponse(
  response: ServerResponse,
  answer: { body: Readable },
  status: number,
  headers: string[],
): void {
  try {
    response.writeHead(status, headers);
  } catch (error) {
    answer.body.on('error', () => {}).destroy();
    throw new ThawError('guest-unreachable', 'the answer of the guest is not valid HTTP', { cause: error });
  }
}

/** Copies `body` into `response` and ends it. The response's headers must have been given. */
export function streamResponse(body: Readable, response: ServerResponse, expectedBytes: number): void {
  if (response.destroyed) {
    body.on('error', () => {}).destroy();
    return;
  }
  let wrote = false;
  let whole = false;
  body.on('data', (chunk: Buffer) => {
    wrote = true;
    // Most answers are one chunk: ending with it saves a second write to the socket.
    if (chunk.length === expectedBytes && !whole) {
      whole = true;
      response.end(chunk);
    } else if (!response.write(chunk)) body.pause();
  });
  response.on('drain', () => body.resume());
  body.on('end', () => whole || response.end());
  body.on('error', () => whole || response.destroy());
  response.on('close', () => {
    if (!body.destroyed && !body.readableEnded) body.destroy();
  });
  // An event stream's headers must not wait for its first event.
  setImmediate(() => {
    if (!wrote && !response.writableEnded && !response.destroyed) response.flushHeaders();
  });
}
