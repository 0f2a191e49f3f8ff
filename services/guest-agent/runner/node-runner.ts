// Owns serving a Node function: loads the bundle's handler and translates node:http to Request and Response.
// Refuses to own logging, restarts and readiness (the agent's).
// Invariant: bodies stream both ways and wait for the slower side; a handler that throws is a 500 with the error
// header, its stack in standard error and never in the body.
// Arguments: HOST PORT ENTRY (a path in the working directory, or '' to look for index.js, index.mjs, index.ts).
import { existsSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { resolve } from 'node:path';
import type { Duplex } from 'node:stream';
import { pathToFileURL } from 'node:url';
import { functionErrorHeader } from '../../../shared/agent-protocol.ts';

interface Context {
  waitUntil(work: Promise<unknown>): void;
  passThroughOnException(): void;
}
type Environment = NodeJS.ProcessEnv;

interface Handler {
  fetch(request: Request, env: Environment, ctx: Context): Response | Promise<Response>;
  /** WebSocket and other upgrades, in node:http's own form. */
  upgrade?(request: IncomingMessage, socket: Duplex, head: Buffer, env: Environment): unknown;
}

const conventionalEntries = ['index.js', 'index.mjs', 'index.ts'];
const bodyBufferBytes = 64 * 1024;
/** Longer than any pause between two requests; the check timer must not wake an idle guest. */
const hostKeepsConnectionsMs = 86_400_000;
const [host = '', port = '', entry = ''] = process.argv.slice(2);

const context: Context = {
  waitUntil(work) {
    Promise.resolve(work).catch((error) => console.error('waitUntil:', error));
  },
  passThroughOnException() {},
};

function findEntry(): string {
  const candidates = entry === '' ? conventionalEntries : [entry];
  const found = candidates.find((name) => existsSync(name));
  if (found === undefined) throw new Error(`no entry: expected ${candidates.join(', ')}`);
  return resolve(found);
}

async function loadHandler(path: string): Promise<Handler> {
  const module = (await import(pathToFileURL(path).href)) as { default?: unknown };
  const exported = module.default as Handler | Handler['fetch'] | undefined;
  if (typeof exported === 'function') return { fetch: exported };
  if (typeof exported?.fetch === 'function') return exported;
  throw new Error(`${path}: expected "export default { fetch(request, env, ctx) }" or a default function`);
}

function webHeaders(rawHeaders: string[]): Headers {
  const headers = new Headers();
  for (let index = 0; index < rawHeaders.length; index += 2)
    headers.append(rawHeaders[index]!, rawHeaders[index + 1]!);
  return headers;
}

/** Pauses the socket while the function does not read. */
function webBody(incoming: IncomingMessage): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      start(controller) {
        incoming.pause();
        incoming.on('data', (chunk: Buffer) => {
          controller.enqueue(new Uint8Array(chunk));
          if (controller.desiredSize! <= 0) incoming.pause();
        });
        incoming.once('end', () => controller.close());
        incoming.once('error', (error) => controller.error(error));
        incoming.once('close', () => {
          if (!incoming.readableEnded) controller.error(new Error('the client closed the connection'));
        });
      },
      pull() {
        incoming.resume();
      },
      cancel() {
        // The rest is discarded so that the connection can serve the next request.
        incoming.removeAllListeners('data').removeAllListeners('end');
        incoming.resume();
      },
    },
    { highWaterMark: bodyBufferBytes, size: (chunk) => chunk!.byteLength },
  );
}

function webRequest(incoming: IncomingMessage, signal: AbortSignal): Request {
  const method = incoming.method!;
  const hasBody =
    method !== 'GET' &&
    method !== 'HEAD' &&
    (incoming.headers['transfer-encoding'] !== undefined || Number(incoming.headers['content-length']) > 0);
  const path = incoming.url!.startsWith('/') ? incoming.url! : '/';
  return new Request(`http://${incoming.headers.host ?? 'localhost'}${path}`, {
    method,
    headers: webHeaders(incoming.rawHeaders),
    signal,
    ...(hasBody ? { body: webBody(incoming), duplex: 'half' } : {}),
  } as RequestInit);
}

/** @returns undefined for what HTTP allows and the Web's classes do not, such as a malformed Host. */
function parseRequest(incoming: IncomingMessage, signal: AbortSignal): Request | undefined {
  try {
    return webRequest(incoming, signal);
  } catch {
    return undefined;
  }
}

function nodeHeaders(response: Response): Record<string, string | string[]> {
  const headers: Record<string, string | string[]> = {};
  for (const [name, value] of response.headers) if (name !== 'set-cookie') headers[name] = value;
  const cookies = response.headers.getSetCookie();
  if (cookies.length > 0) headers['set-cookie'] = cookies;
  return headers;
}

type Part = { done: boolean; value?: Uint8Array };

/** What is there at once; undefined when it takes longer than this turn of the event loop. */
const atOnce = (part: Promise<Part>): Promise<Part | undefined> =>
  Promise.race([part, new Promise<undefined>((resolve) => setImmediate(resolve, undefined))]);

/** Small answers leave in one write with their length; for slow ones the client sees the status before the body. */
async function sendBody(
  body: ReadableStream<Uint8Array>,
  outgoing: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  const reader = body.getReader();
  const stop = () => void reader.cancel(signal.reason).catch(() => {});
  signal.addEventListener('abort', stop, { once: true });
  let next = reader.read();
  const first = await atOnce(next);
  if (first === undefined) outgoing.flushHeaders();
  else if (!first.done) {
    next = reader.read();
    const second = await atOnce(next);
    if (second?.done) return void outgoing.end(first.value);
    await writeChunk(first.value!, outgoing);
  }
  for (let part = await next; !part.done && !signal.aborted; part = await reader.read())
    await writeChunk(part.value!, outgoing);
  outgoing.end();
}

async function writeChunk(chunk: Uint8Array, outgoing: ServerResponse): Promise<void> {
  if (outgoing.write(chunk) || outgoing.destroyed) return;
  await new Promise<void>((go) => {
    const settle = () => {
      outgoing.off('drain', settle).off('close', settle);
      go();
    };
    outgoing.on('drain', settle).on('close', settle);
  });
}

async function serve(handler: Handler, incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
  const gone = new AbortController();
  outgoing.once('close', () => {
    if (!outgoing.writableFinished) gone.abort(new DOMException('the client is gone', 'AbortError'));
  });
  const request = parseRequest(incoming, gone.signal);
  if (request === undefined) return void outgoing.writeHead(400).end('malformed request\n');
  try {
    const response = await handler.fetch(request, process.env, context);
    if (!(response instanceof Response)) throw new TypeError('the handler did not return a Response');
    if (gone.signal.aborted) return void response.body?.cancel().catch(() => {});
    outgoing.statusCode = response.status;
    if (response.statusText !== '') outgoing.statusMessage = response.statusText;
    for (const [name, value] of Object.entries(nodeHeaders(response))) outgoing.setHeader(name, value);
    if (incoming.method !== 'HEAD' && response.body !== null)
      return await sendBody(response.body, outgoing, gone.signal);
    void response.body?.cancel().catch(() => {});
    outgoing.end();
  } catch (error) {
    fail(error, outgoing, gone.signal);
  }
}

function fail(error: unknown, outgoing: ServerResponse, signal: AbortSignal): void {
  if (signal.aborted) return;
  console.error(error);
  if (outgoing.headersSent) {
    outgoing.destroy();
    return;
  }
  outgoing.writeHead(500, { [functionErrorHeader]: 'handler-threw', 'content-type': 'text/plain' });
  outgoing.end('The function threw an error; its log has the stack.\n');
}

function listen(handler: Handler): void {
  // The host keeps its connections open and ends them; time limits are the platform's.
  const server = createServer({
    keepAliveTimeout: hostKeepsConnectionsMs,
    requestTimeout: 0,
    headersTimeout: 0,
    connectionsCheckingInterval: hostKeepsConnectionsMs,
  });
  server.on('request', (incoming: IncomingMessage, outgoing: ServerResponse) => {
    // The agent's readiness probe: answered here, so that it never runs the function.
    if (incoming.method === 'OPTIONS' && incoming.url === '*') outgoing.writeHead(204).end();
    else void serve(handler, incoming, outgoing);
  });
  server.on('upgrade', (incoming: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => {});
    if (handler.upgrade === undefined) {
      socket.end('HTTP/1.1 501 Not Implemented\r\nconnection: close\r\ncontent-length: 0\r\n\r\n');
      return;
    }
    Promise.resolve()
      .then(() => handler.upgrade!(incoming, socket, head, process.env))
      .catch((error) => {
        console.error(error);
        socket.destroy();
      });
  });
  server.listen(Number(port), host);
}

// The agent holds the other end of standard input: its end is the end of this process.
process.stdin.on('end', () => process.exit(0)).resume();
(process.stdin as { unref?: () => void }).unref?.();
listen(await loadHandler(findEntry()));
