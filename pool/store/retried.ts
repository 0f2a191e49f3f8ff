// Owns asking a store again. Invariant: the caller's deadline holds over all attempts; each attempt has its own, so that
// a connection that hangs costs one attempt and not the request.
import { defaultTimeoutMs, StoreError } from './blob-store.ts';
import { runRequest } from './request.ts';
import { attempts, defaultRetryPolicy, type RetryPolicy } from './retry-policy.ts';
import type { Around, StoreRequest } from './wrapped-store.ts';

/** What an attempt may take before its first byte. */
const attemptBaseMs = 8_000;
/** A link slower than this is as good as none. */
const slowestBytesPerMs = 1_000;
const neverAborted = new AbortController().signal;

export function retried(policy: RetryPolicy = defaultRetryPolicy): Around {
  return (request, call) => {
    // A stream lives on after the request: its end is its adapter's, and must not be taken over here.
    if (request.op === 'stream') {
      const { signal = neverAborted } = request.options;
      return attempts(policy, signal, () => call(request.options));
    }
    const { timeoutMs = defaultTimeoutMs } = request.options;
    const attemptMs = attemptTimeoutMs(request);
    return runRequest(request.what, { ...request.options, timeoutMs }, ({ signal }) =>
      attempts(policy, signal, () => call({ signal, timeoutMs: attemptMs }).catch(asAttempt)),
    );
  };
}

export const attemptTimeoutMs = (request: StoreRequest): number => {
  const { timeoutMs = defaultTimeoutMs } = request.options;
  const bytes = request.bodyBytes + request.askedBytes;
  return Math.min(timeoutMs, attemptBaseMs + Math.ceil(bytes / slowestBytesPerMs));
};

/** An attempt that ran out of its own time is worth another; when the caller's time is up, `runRequest` says so. */
function asAttempt(error: unknown): never {
  if (error instanceof StoreError && error.failure === 'deadline')
    throw new StoreError('unavailable', error.message, { cause: error });
  throw error;
}
