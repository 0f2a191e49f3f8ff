// Owns who a request is: its request id and its W3C trace context, accepted from the caller or made.
// Invariant: what goes on has the exact shape of its specification, whatever came in.
import { randomFillSync } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { requestIdPattern } from '../../shared/ids.ts';

const pool = Buffer.allocUnsafe(8_192);
let poolOffset = pool.length;

/** Random hex from a pool that is refilled in one call: asking the kernel per request costs more than the request. */
function randomHex(sizeBytes: number): string {
  if (poolOffset + sizeBytes > pool.length) {
    randomFillSync(pool);
    poolOffset = 0;
  }
  const hex = pool.toString('hex', poolOffset, poolOffset + sizeBytes);
  poolOffset += sizeBytes;
  return hex;
}

export function requestIdOf(headers: IncomingHttpHeaders): string {
  const given = headers['x-request-id'];
  if (typeof given === 'string' && requestIdPattern.test(given)) return given;
  return randomHex(12);
}

const traceparentPattern = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?$/;
const zeroTrace = '0'.repeat(32);
const zeroSpan = '0'.repeat(16);

export function isTraceparent(value: string): boolean {
  const match = traceparentPattern.exec(value);
  if (match === null || match[1] === 'ff' || match[2] === zeroTrace || match[3] === zeroSpan) return false;
  // Version 00 has exactly four fields; later ones may have more.
  return match[1] !== '00' || match[4] === undefined;
}

/** A new trace, not sampled: Thaw records no spans itself. */
export const newTraceparent = (): string => `00-${randomHex(16)}-${randomHex(8)}-00`;
