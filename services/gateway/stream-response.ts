// Owns moving a guest's body to the client: backpressure both ways, nothing kept.
// Invariant: the client never mistakes a broken body for a whole one: a failure after the headers cuts the connection.
import type { ServerResponse } from 'node:http';
import type { Readable } from 'node:stream';
import { ThawError } from '../../shared/errors.ts';

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
