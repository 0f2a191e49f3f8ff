// Owns the failure bodies of the E2B routes: { code, message }, where code repeats the HTTP status.
// Invariant: clients branch on the body's code, so it and the status never differ.
import { type ErrorCode, ThawError } from '../../shared/errors.ts';
import { asThawError, platformErrorHeader, retryAfterSecondsOf } from '../../shared/problem.ts';

export interface E2bFailure {
  status: number;
  headers: Record<string, string>;
  body: { code: number; message: string; sandboxId?: string; port?: number };
}

export function e2bFailureOf(cause: unknown, requestId: string): E2bFailure {
  const error = asThawError(cause);
  const retryAfterSeconds = retryAfterSecondsOf(error);
  return {
    status: error.status,
    headers: {
      'content-type': 'application/json',
      'x-request-id': requestId,
      [platformErrorHeader]: error.code,
      ...(retryAfterSeconds === undefined ? {} : { 'retry-after': String(retryAfterSeconds) }),
      // Newer clients repeat 429, 502, 503 and 504 on their own unless told that it cannot help.
      ...(error.retryable ? {} : { 'should-retry': 'false' }),
    },
    body: { code: error.status, message: error.message },
  };
}

/** The texts by which clients tell a sandbox that is gone from one whose port is closed. */
export function dataPlaneFailureOf(
  cause: unknown,
  requestId: string,
  sandboxId: string,
  port: number,
): E2bFailure {
  const failure = e2bFailureOf(cause, requestId);
  const code = cause instanceof ThawError ? cause.code : 'internal';
  if (code === 'forbidden') return { ...failure, body: { sandboxId, ...failure.body } };
  const gone = code === 'sandbox-not-found' || code === 'vm-died';
  const message = gone ? 'The sandbox was not found' : reachFailures[code];
  if (message === undefined) return failure;
  const body = { sandboxId, message, ...(gone ? {} : { port }), code: 502 };
  return { status: 502, headers: { ...failure.headers, 'should-retry': 'false' }, body };
}

const reachFailures: Partial<Record<ErrorCode, string>> = {
  'guest-unreachable': 'The sandbox is running but port is not open',
  'guest-hung-up': 'The sandbox ended the connection before it answered',
};
