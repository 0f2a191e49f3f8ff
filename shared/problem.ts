// Owns RFC 9457 problem details: how a failure becomes a body and headers on Thaw's own routes.
// Refuses to own the E2B shape. Invariant: an unexpected error's own words never reach a caller.
import { type ErrorCode, errorKinds, ThawError } from './errors.ts';

export const problemContentType = 'application/problem+json';
/** Names the code of a platform failure, so that a caller can tell it from the function's own answer. */
export const platformErrorHeader = 'x-thaw-error';

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: ErrorCode;
  retryable: boolean;
  requestId: string;
}

/** Turns anything thrown into a registered failure; what is not one becomes `internal`, with the cause kept for the log. */
export function asThawError(error: unknown): ThawError {
  if (error instanceof ThawError) return error;
  return new ThawError('internal', errorKinds.internal.title, { cause: error });
}

export function problemOf(error: ThawError, requestId: string): Problem {
  const { status, title, retryable } = errorKinds[error.code];
  return {
    type: `urn:thaw:error:${error.code}`,
    title,
    status,
    detail: error.message,
    code: error.code,
    retryable,
    requestId,
  };
}

/** Whole seconds for Retry-After; undefined where waiting is no cure. */
export function retryAfterSecondsOf(error: ThawError): number | undefined {
  if (error.status !== 429 && error.status !== 503) return undefined;
  return Math.max(1, Math.ceil(error.retryAfterSeconds ?? 1));
}

/** The headers that go with `problemOf`. */
export function problemHeadersOf(error: ThawError, requestId: string): Record<string, string> {
  const retryAfterSeconds = retryAfterSecondsOf(error);
  return {
    'content-type': problemContentType,
    'cache-control': 'no-store',
    [platformErrorHeader]: error.code,
    'x-request-id': requestId,
    ...(retryAfterSeconds === undefined ? {} : { 'retry-after': String(retryAfterSeconds) }),
  };
}
