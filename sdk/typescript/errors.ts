// Owns what can go wrong in a call: one class for each thing a caller may want to do about it.
// Refuses to own sending. Invariant: every failure of the platform, the sandbox or the wire becomes a `ThawError` with a
// code of docs/errors.md, or with one of the codes named here.

export interface ErrorFacts {
  /** A code of docs/errors.md; from a sandbox's own services the Connect code with dashes; or one of `connection-lost`, `unreachable`. */
  code: string;
  /** HTTP status of the answer; undefined when there was none. */
  status?: number | undefined;
  /** True when the same call may succeed if it is made again unchanged. */
  retryable?: boolean | undefined;
  /** Milliseconds the server asks to wait before that. */
  retryAfterMs?: number | undefined;
  /** Names the request in the server's log. */
  requestId?: string | undefined;
  cause?: unknown;
}

/** Base of all failures. */
export class ThawError extends Error {
  readonly code: string;
  readonly status: number | undefined;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  readonly requestId: string | undefined;

  constructor(message: string, facts: ErrorFacts) {
    super(message, facts.cause === undefined ? undefined : { cause: facts.cause });
    this.name = new.target.name;
    this.code = facts.code;
    this.status = facts.status;
    this.retryable = facts.retryable ?? false;
    this.retryAfterMs = facts.retryAfterMs;
    this.requestId = facts.requestId;
  }
}

/** The API key, access token or user is missing or not allowed to do this. */
export class AuthenticationError extends ThawError {}
/** The request is malformed; the message names the field and what was expected. */
export class InvalidRequestError extends ThawError {}
/** There is no such sandbox, snapshot, template, function, file or process; `code` says which. */
export class NotFoundError extends ThawError {}
/** The resource is in a state that does not allow this, or exists already. */
export class ConflictError extends ThawError {}
/** The function's build or start failed; the message holds the end of its output. */
export class BuildError extends ThawError {}
/** Too many requests; wait `retryAfterMs`. */
export class RateLimitError extends ThawError {}
/** Thaw has no room, or cannot serve at the moment; wait `retryAfterMs`. */
export class NoCapacityError extends ThawError {}
/** The deadline passed: the call's own (`status` undefined), the command's, or the server's. */
export class DeadlineExceededError extends ThawError {}
/** No answer could be had: server, sandbox or port not there, or the connection broke. */
export class UnreachableError extends ThawError {}
/** The disk of the sandbox or of the host is full. */
export class NoSpaceError extends ThawError {}
/** This server does not offer that. */
export class NotOfferedError extends ThawError {}

/** The command ended with an exit code other than 0, or by a signal (then `exitCode` is -1). */
export class CommandExitError extends ThawError {
  readonly exitCode: number;
  /** All that the command wrote. */
  readonly stdout: string;
  readonly stderr: string;

  constructor(result: { exitCode: number; stdout: string; stderr: string; error?: string | undefined }) {
    const reason = result.error ?? `exit status ${result.exitCode}`;
    const lastWords = result.stderr.trimEnd().split('\n').at(-1) ?? '';
    super(`the command failed: ${reason}${lastWords === '' ? '' : `: ${lastWords}`}`, {
      code: 'command-exit',
    });
    this.exitCode = result.exitCode;
    this.stdout = result.stdout;
    this.stderr = result.stderr;
  }
}

type ErrorClass = new (message: string, facts: ErrorFacts) => ThawError;

const byStatus: Record<number, ErrorClass> = {
  400: InvalidRequestError,
  401: AuthenticationError,
  403: AuthenticationError,
  404: NotFoundError,
  405: InvalidRequestError,
  409: ConflictError,
  413: InvalidRequestError,
  416: InvalidRequestError,
  422: BuildError,
  429: RateLimitError,
  501: NotOfferedError,
  502: UnreachableError,
  503: NoCapacityError,
  504: DeadlineExceededError,
  507: NoSpaceError,
};

/** Connect's codes, with the status that says the same. */
const statusOfConnectCode: Record<string, number> = {
  invalid_argument: 400,
  failed_precondition: 400,
  out_of_range: 400,
  unauthenticated: 401,
  permission_denied: 403,
  not_found: 404,
  already_exists: 409,
  aborted: 409,
  resource_exhausted: 429,
  unimplemented: 501,
  unavailable: 503,
  deadline_exceeded: 504,
};

function make(message: string, facts: ErrorFacts): ThawError {
  // A sandbox that is gone is answered 502 on its own port, for the sake of E2B's clients.
  const Class =
    facts.code === 'sandbox-not-found' ? NotFoundError : (byStatus[facts.status ?? 0] ?? ThawError);
  return new Class(message, facts);
}

const retryableStatuses = [429, 502, 503, 504];

/** Reads the three forms of failures: problem details, `{ code: STATUS, message }`, `{ code: CONNECT_CODE, message }`. */
export function errorOfResponse(status: number, headers: Headers, text: string): ThawError {
  const body = objectOf(text);
  const bodyCode = typeof body.code === 'string' ? body.code : undefined;
  const code = headers.get('x-thaw-error') ?? bodyCode?.replaceAll('_', '-') ?? codeOfStatus(status);
  const message = String(body.detail ?? body.message ?? (text.slice(0, 500).trim() || `HTTP ${status}`));
  const refused = headers.get('should-retry') === 'false';
  const seconds = headers.get('retry-after');
  return make(message, {
    code,
    status,
    retryable:
      typeof body.retryable === 'boolean'
        ? body.retryable
        : !refused && retryableStatuses.includes(status) && code !== 'deadline-exceeded',
    retryAfterMs: seconds !== null && /^[0-9]+$/.test(seconds) ? Number(seconds) * 1_000 : undefined,
    requestId: headers.get('x-request-id') ?? undefined,
  });
}

const codeOfStatus = (status: number): string => {
  const match = Object.entries(statusOfConnectCode).find(([, known]) => known === status);
  return status === 507 ? 'no-space' : (match?.[0].replaceAll('_', '-') ?? 'internal');
};

/** An error within a stream, or in one entry of a list: there is no status line of its own. */
export function errorOfConnect(error: { code?: string; message?: string }): ThawError {
  const code = error.code ?? 'unknown';
  const status = statusOfConnectCode[code];
  return make(error.message ?? code, { code: code.replaceAll('_', '-'), status });
}

/** One failed entry of a list, in the E2B form. */
export function errorOfEntry(error: { code: number; message: string }): ThawError {
  return make(error.message, { code: codeOfStatus(error.code), status: error.code });
}

function objectOf(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

/** Turns what `fetch` throws into an error that says where and why. */
export function errorOfFetch(error: unknown, url: string): unknown {
  if (error instanceof ThawError) return error;
  // An abort by the caller keeps the caller's own reason.
  if (!(error instanceof TypeError)) return error;
  const { code } = (error.cause ?? {}) as { code?: string };
  const lost = error.message === 'terminated' || code === 'UND_ERR_SOCKET' || code === 'ECONNRESET';
  return new UnreachableError(
    lost
      ? `the connection to ${url} broke`
      : `nothing answers on ${url}${code === undefined ? '' : ` (${code})`}`,
    { code: lost ? 'connection-lost' : 'unreachable', retryable: !lost, cause: error },
  );
}
