// Owns writing server-sent events to a response that fastify has let go of.
// Invariant: a slow reader slows the source; a gone reader ends it.
import type { ServerResponse } from 'node:http';

/** Below the idle time-outs of common proxies. */
const heartbeatMs = 15_000;

/** Writes each value as one event until the source ends or the client goes. */
export async function sendEvents(
  response: ServerResponse,
  headers: Record<string, string>,
  open: (signal: AbortSignal) => AsyncIterable<{ event: string; data: unknown }>,
): Promise<void> {
  const gone = new AbortController();
  response.on('close', () => gone.abort());
  response.writeHead(200, { ...headers, 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  response.flushHeaders();
  const heartbeat = setInterval(() => response.writableNeedDrain || response.write(': \n\n'), heartbeatMs);
  try {
    for await (const { event, data } of open(gone.signal)) {
      if (gone.signal.aborted) return;
      if (!response.write(`event: ${event}\ndata: ${JSON.stringify(data)}\n\n`)) await drained(response);
    }
  } finally {
    clearInterval(heartbeat);
    response.end();
  }
}

function drained(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const settle = () => {
      response.off('drain', settle);
      response.off('close', settle);
      resolve();
    };
    response.on('drain', settle);
    response.on('close', settle);
  });
}
