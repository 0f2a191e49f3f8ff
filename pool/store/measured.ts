// Owns the store's metrics: each single request to it by kind, outcome and time, and the bytes moved.
import { Readable } from 'node:stream';
import { metrics } from '../../shared/metrics.ts';
import { StoreError } from './blob-store.ts';
import type { Around, StoreRequest } from './wrapped-store.ts';

export function measured(): Around {
  return async (request, call) => {
    const startMs = performance.now();
    const end = (outcome: string) =>
      metrics.storeRequest.observe({ op: request.op, outcome }, (performance.now() - startMs) / 1000);
    try {
      const result = await call(request.options);
      end('ok');
      countBytes(request, result);
      return result;
    } catch (error) {
      end(error instanceof StoreError ? error.failure : 'unexpected');
      throw error;
    }
  };
}

function countBytes(request: StoreRequest, result: unknown): void {
  const { op } = request;
  if (Buffer.isBuffer(result)) metrics.storeBytes.inc({ op }, result.length);
  else if (result instanceof Readable)
    // A stream's bytes are counted as asked for: a listener of our own would change how it flows.
    metrics.storeBytes.inc({ op }, request.askedBytes);
  else if (request.bodyBytes > 0 && result !== 'exists') metrics.storeBytes.inc({ op }, request.bodyBytes);
}
