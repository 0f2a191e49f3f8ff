// Owns what an S3 client's exception means in the port's words.
// Invariant: what may succeed when tried again is `unavailable`; what an operator must mend is `refused`.
import { StoreError, type StoreFailure } from './blob-store.ts';

interface ServiceException {
  name?: string;
  message?: string;
  code?: string;
  $metadata?: { httpStatusCode?: number };
}

const failureOfName: Record<string, StoreFailure> = {
  NoSuchKey: 'absent',
  NotFound: 'absent',
  // Its upload was swept or aborted: the whole put may be tried again.
  NoSuchUpload: 'unavailable',
  NoSuchBucket: 'refused',
  InvalidRange: 'out-of-range',
  QuotaExceeded: 'full',
  XMinioStorageFull: 'full',
  NotImplemented: 'refused',
  // 400 in S3's words: the server waited too long for our bytes.
  RequestTimeout: 'unavailable',
  IncompleteBody: 'unavailable',
  // Bytes that changed on the way there.
  XAmzContentSHA256Mismatch: 'unavailable',
  BadDigest: 'unavailable',
};

export function isPreconditionFailed(error: unknown): boolean {
  const { name, $metadata } = error as ServiceException;
  return name === 'PreconditionFailed' || $metadata?.httpStatusCode === 412;
}

export function storeErrorOf(error: unknown, what: string): StoreError {
  if (error instanceof StoreError) return error;
  const { name = '', message = '', code = '' } = error as ServiceException;
  const status = (error as ServiceException).$metadata?.httpStatusCode;
  const failure = failureOfName[name] ?? failureOfStatus(status);
  const detail = [status, name, code, message].filter((part) => part !== undefined && part !== '').join(' ');
  return new StoreError(failure, `${what}: ${detail}`, { cause: error });
}

function failureOfStatus(status: number | undefined): StoreFailure {
  // No answer at all: refused, reset, cut off, not resolved.
  if (status === undefined) return 'unavailable';
  if (status === 404) return 'absent';
  if (status === 416) return 'out-of-range';
  if (status === 507) return 'full';
  // 409: a conflicting conditional request was under way. 2xx: the answer's body was cut off or no XML.
  if (status === 409 || status === 429 || status >= 500 || status < 300) return 'unavailable';
  return 'refused';
}
