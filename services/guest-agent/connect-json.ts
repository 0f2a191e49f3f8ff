// Owns the server's side of the Connect protocol in JSON: unary answers, server streams with keepalives, client streams.
// Refuses to own methods (the services) and authorisation (access.ts). docs/decisions/0002 says why it is not a library.
// Invariant: every stream ends with an end frame while the client is there; a body is never larger than its limit.
import type { IncomingMessage, ServerResponse } from 'node:http';
import { pipeline } from 'node:stream/promises';
import {
  ConnectError,
  connectStatus,
  encodeFrame,
  endFlag,
  FrameDecoder,
} from '../../shared/connect-frames.ts';

const maxRequestBytes = 8 * 1024 * 1024;
const streamType = 'application/connect+json';
const defaultKeepaliveMs = 90_000;
const maxTimerMs = 2 ** 31 - 1;
const restMs = 5_000;

export type Message = Record<string, unknown>;

/** @throws ConnectError `resource_exhausted` | `canceled`. */
export async function readBody(request: IncomingMessage, limitBytes = maxRequestBytes): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of chunksOf(request)) {
    sizeBytes += chunk.length;
    if (sizeBytes > limitBytes)
      throw new ConnectError('resource_exhausted', `the body may have ${limitBytes} bytes`);
    chunks.push(chunk);
  }
  return chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks);
}

/** Who stops reading must not end the connection: it carries the answer. */
const chunksOf = (request: IncomingMessage) =>
  request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>;

function asMessage(value: unknown): Message {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new ConnectError('invalid_argument', 'the message must be a JSON object');
  return value as Message;
}

export function parseMessage(body: Buffer): Message {
  if (body.length === 0) return {};
  try {
    return asMessage(JSON.parse(body.toString('utf8')));
  } catch (error) {
    if (error instanceof ConnectError) throw error;
    throw new ConnectError('invalid_argument', 'the body is not valid JSON');
  }
}

/** What a client may have sent wrong or met is said; anything else is `internal` without its words. */
export function asConnectError(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  console.error(error);
  return new ConnectError('internal', 'an unexpected error in the agent');
}

const errorJson = ({ code, message }: ConnectError) => ({ code, message });

export async function serveUnary(
  request: IncomingMessage,
  response: ServerResponse,
  method: (message: Message) => Promise<object> | object,
): Promise<void> {
  try {
    requireType(request, 'application/json');
    const answer = async () => method(parseMessage(await readBody(request)));
    const message = await withinTimeout(request, answer());
    if (message instanceof JsonPieces) await message.send(response);
    else sendJson(response, 200, message);
  } catch (error) {
    const failure = asConnectError(error);
    sendJson(response, connectStatus[failure.code], errorJson(failure));
  }
}

/** An answer that is written piece by piece, no faster than the client takes it. */
export class JsonPieces {
  readonly #pieces: AsyncIterable<string>;

  constructor(pieces: AsyncIterable<string>) {
    this.#pieces = pieces;
  }

  async send(response: ServerResponse): Promise<void> {
    response.writeHead(200, { 'content-type': 'application/json' });
    await pipeline(this.#pieces, response).catch((error) => {
      // The client left, or an end would make half an answer look whole.
      if (!response.destroyed) response.destroy(error);
    });
  }
}

/** Milliseconds the client grants the call, 0 when it set no limit. */
function grantedMs(request: IncomingMessage): number {
  const timeoutMs = Number(request.headers['connect-timeout-ms']);
  return timeoutMs > 0 ? Math.min(timeoutMs, maxTimerMs) : 0;
}

/** @throws ConnectError `deadline_exceeded` when the client would not wait for the answer any longer. */
async function withinTimeout<T>(request: IncomingMessage, answer: Promise<T>): Promise<T> {
  const timeoutMs = grantedMs(request);
  if (timeoutMs === 0) return await answer;
  let timer: NodeJS.Timeout | undefined;
  const overdue = new Promise<never>((_, reject) => {
    const late = () => reject(new ConnectError('deadline_exceeded', `no answer within ${timeoutMs} ms`));
    timer = setTimeout(late, timeoutMs);
  });
  try {
    return await Promise.race([answer, overdue]);
  } finally {
    clearTimeout(timer);
  }
}

export function sendJson(response: ServerResponse, status: number, value: unknown): void {
  if (response.headersSent || response.destroyed) return;
  if (status >= 400) dropRest(response);
  const text = JSON.stringify(value);
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(text),
  });
  response.end(text);
}

/**
 * An answer before the request's end: the rest is read and dropped for a while. A connection that is closed at once
 * takes the answer with it when the client is still writing.
 */
function dropRest({ req: request }: ServerResponse): void {
  if (request.complete || request.destroyed) return;
  const { socket } = request;
  const timer = setTimeout(() => request.complete || socket.destroy(), restMs);
  request.once('close', () => clearTimeout(timer));
  // A pipe that nobody empties would hold the rest back, and the caller's next request behind it.
  request.unpipe();
  request.resume();
}

export async function serveStream(
  request: IncomingMessage,
  response: ServerResponse,
  method: (message: Message, stream: ServerStream) => Promise<void>,
): Promise<void> {
  const stream = new ServerStream(request, response);
  try {
    requireType(request, streamType);
    const messages: Message[] = [];
    for await (const message of readMessages(request))
      if (messages.push(message) > 1)
        throw new ConnectError('invalid_argument', 'more than one request message');
    if (messages.length === 0) throw new ConnectError('invalid_argument', 'expected a request message');
    await method(messages[0]!, stream);
  } catch (error) {
    stream.end(asConnectError(error));
  }
}

/** A stream of messages from the client, one message back when it has ended. */
export async function serveClientStream(
  request: IncomingMessage,
  response: ServerResponse,
  method: (messages: AsyncIterable<Message>) => Promise<object>,
): Promise<void> {
  const stream = new ServerStream(request, response);
  try {
    requireType(request, streamType);
    stream.send(await withinTimeout(request, method(readMessages(request))));
    stream.end();
  } catch (error) {
    stream.end(asConnectError(error));
  }
}

/** The messages of a request as they arrive. */
async function* readMessages(request: IncomingMessage): AsyncGenerator<Message> {
  const decoder = new FrameDecoder(maxRequestBytes);
  for await (const chunk of chunksOf(request))
    for (const { flag, message } of decoder.push(chunk)) {
      if (flag !== 0) throw new ConnectError('invalid_argument', `unknown frame flags ${flag}`);
      yield asMessage(message);
    }
  if (decoder.heldBytes > 0) throw new ConnectError('invalid_argument', 'the last message is cut off');
}

function requireType(request: IncomingMessage, type: string): void {
  const given = request.headers['content-type']?.split(';')[0]?.trim();
  if (given !== type) throw new ConnectError('invalid_argument', `content-type must be ${type}`);
}

/** One answer stream. `send` says whether the client keeps up; `onDrain` is called when it does again. */
export class ServerStream {
  readonly #response: ServerResponse;
  readonly #keepaliveMs: number;
  #keepalive: NodeJS.Timeout | undefined;
  #ended = false;
  #wake: () => void = () => {};
  /** Milliseconds the client grants the call, 0 when it set no limit. */
  readonly timeoutMs: number;
  onDrain: () => void = () => {};
  /** Called once the connection's part in the call is over: the client left or has taken the end. */
  onGone: () => void = () => {};

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.#response = response;
    const seconds = Number(request.headers['keepalive-ping-interval']);
    this.#keepaliveMs = seconds > 0 ? Math.min(seconds * 1000, maxTimerMs) : defaultKeepaliveMs;
    this.timeoutMs = grantedMs(request);
    response.on('drain', () => {
      this.#wake();
      this.onDrain();
    });
    response.once('close', () => {
      clearInterval(this.#keepalive);
      this.#ended = true;
      this.#wake();
      this.onGone();
    });
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** Sends `message` whenever nothing else was sent for the interval the client asked for. */
  keepAliveWith(message: object): void {
    this.#keepalive = setInterval(() => this.send(message), this.#keepaliveMs);
  }

  /** @returns false when the client reads more slowly than this writes. */
  send(message: object): boolean {
    if (this.#ended) return true;
    this.#open();
    this.#keepalive?.refresh();
    return this.#response.write(encodeFrame(message));
  }

  /** For one sender at a time: resolves when the client has taken what was sent, or left. */
  drained(): Promise<void> {
    if (this.#ended || !this.#response.writableNeedDrain) return Promise.resolve();
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }

  end(error?: ConnectError): void {
    if (this.#ended) return;
    if (error !== undefined && !this.#response.headersSent) dropRest(this.#response);
    this.#open();
    this.#ended = true;
    clearInterval(this.#keepalive);
    this.#response.end(encodeFrame(error === undefined ? {} : { error: errorJson(error) }, endFlag));
  }

  #open(): void {
    if (!this.#response.headersSent) this.#response.writeHead(200, { 'content-type': streamType });
  }
}

// --- Fields of requests: a missing one has its zero value, as in proto3. ---

export function textField(message: Message, name: string): string {
  const value = message[name] ?? '';
  if (typeof value !== 'string') throw new ConnectError('invalid_argument', `${name} must be a string`);
  if (value.includes('\0')) throw new ConnectError('invalid_argument', `${name} must not hold a NUL`);
  return value;
}

export function numberField(message: Message, name: string): number {
  const value = Number(message[name] ?? 0);
  if (!Number.isInteger(value)) throw new ConnectError('invalid_argument', `${name} must be an integer`);
  return value;
}

export function flagField(message: Message, name: string): boolean {
  const value = message[name] ?? false;
  if (typeof value !== 'boolean') throw new ConnectError('invalid_argument', `${name} must be true or false`);
  return value;
}

export function messageField(message: Message, name: string): Message {
  return asMessage(message[name] ?? {});
}

export function textListField(message: Message, name: string): string[] {
  const value = message[name] ?? [];
  if (!Array.isArray(value)) throw new ConnectError('invalid_argument', `${name} must be a list`);
  return value.map((_, index) => textField(value as unknown as Message, String(index)));
}

export function textMapField(message: Message, name: string): Record<string, string> {
  const map = messageField(message, name);
  return Object.fromEntries(Object.keys(map).map((key) => [key, textField(map, key)]));
}

/** Bytes travel as base64. */
export function bytesField(message: Message, name: string): Buffer {
  return Buffer.from(textField(message, name), 'base64');
}
