// Owns the registry of error codes and the one error class that crosses module borders.
// Refuses to own wire formats: `problem.ts` and the E2B routes turn an error into a body.
// Invariant: every code an operator or caller can meet is a row here, and a row in docs/errors.md.

export interface ErrorKind {
  /** HTTP status of Thaw's own routes. */
  status: number;
  /** True when the same request may succeed if sent again unchanged. */
  retryable: boolean;
  /** One line for people: what it means and what to do. */
  title: string;
}

const kind = (status: number, retryable: boolean, title: string): ErrorKind => ({ status, retryable, title });

export const errorKinds = {
  'bad-request': kind(
    400,
    false,
    'The request is malformed; the detail names the field and what was expected.',
  ),
  'bad-name': kind(400, false, 'A name must match ^[a-z][a-z0-9-]{0,62}$.'),
  'bad-manifest': kind(400, false, 'thaw.json is invalid; the detail names the key and what was expected.'),
  'bad-bundle': kind(400, false, 'The archive is unsafe or unreadable; the detail names the entry.'),
  unauthenticated: kind(401, false, 'Send a valid API key in X-API-Key or Authorization: Bearer.'),
  forbidden: kind(403, false, 'This token may not do this.'),
  'not-found': kind(404, false, 'No such route.'),
  'function-not-found': kind(404, false, 'No function of that name or version is deployed.'),
  'template-not-found': kind(404, false, 'No template or snapshot of that name exists.'),
  'sandbox-not-found': kind(404, false, 'No such sandbox; it may have ended.'),
  conflict: kind(409, false, 'The resource is in a state that does not allow this.'),
  'body-too-large': kind(413, false, 'The body exceeds the limit that the detail names.'),
  'build-failed': kind(422, false, 'The build command failed; the detail holds the end of its output.'),
  'start-failed': kind(422, false, 'The function did not start; the detail holds the end of its output.'),
  overloaded: kind(429, true, 'The queue is full; retry after the time given in Retry-After.'),
  internal: kind(500, false, 'An unexpected error; the log holds it under this requestId.'),
  'not-implemented': kind(501, false, 'This version of Thaw does not offer this.'),
  'vm-died': kind(502, true, 'The VM ended while it served the request.'),
  'pager-lost': kind(
    502,
    true,
    'The process that served the memory pages of the VM ended, and the VM with it.',
  ),
  'guest-unreachable': kind(502, true, 'The guest did not accept the connection.'),
  'guest-hung-up': kind(502, true, 'The guest ended a connection that it had served before it answered.'),
  'no-capacity': kind(503, true, 'No VM could be had before the deadline: memory or VM limit reached.'),
  'guest-unhealthy': kind(
    503,
    true,
    'The agent in the sandbox does not answer; the sandbox runs on as it is.',
  ),
  'shutting-down': kind(503, true, 'Thaw is draining; retry on another node or later.'),
  'restore-failed': kind(503, true, 'A VM could not be restored from its snapshot.'),
  'state-unavailable': kind(503, true, 'Redis does not answer.'),
  'store-unavailable': kind(503, true, 'The snapshot store does not answer, or not now.'),
  'store-refused': kind(
    500,
    false,
    'The snapshot store refused: credentials, permissions, bucket or an operation it does not know.',
  ),
  'snapshot-damaged': kind(
    500,
    false,
    'A stored part of the snapshot is missing or failed verification; nothing of it was used.',
  ),
  'deadline-exceeded': kind(504, true, 'The work did not end before its deadline.'),
  'missing-package': kind(500, false, 'A host program is missing; the detail names the package to install.'),
  'image-failed': kind(
    500,
    false,
    'The guest image could not be built; the detail holds the program’s words.',
  ),
  'data-dir-in-use': kind(500, false, 'Another Thaw runs on this data directory.'),
  'mount-failed': kind(500, false, 'The page file system could not be mounted; the detail says why.'),
  'port-in-use': kind(500, false, 'The port is taken; choose another with THAW_PORT.'),
  'no-space': kind(507, false, 'The disk is full or below its reserve.'),
  'bad-config': kind(500, false, 'The configuration is invalid; the detail names the key.'),
  'not-hardened': kind(
    500,
    false,
    'Strict configuration, and a hardening measure is not in force; the detail names each and why.',
  ),
  'hypervisor-failed': kind(500, false, 'The hypervisor refused or ended; the detail holds its own words.'),
  incompatible: kind(
    409,
    false,
    'The snapshot was made by another hypervisor, CPU, kernel or image; rebuild it.',
  ),
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof errorKinds;

/** An expected failure with a registered code. `detail` is safe to show to the caller. */
export class ThawError extends Error {
  readonly code: ErrorCode;
  /** Whole seconds for Retry-After, where the code is an overload. */
  readonly retryAfterSeconds: number | undefined;

  constructor(
    code: ErrorCode,
    detail: string,
    options: { cause?: unknown; retryAfterSeconds?: number } = {},
  ) {
    super(detail, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'ThawError';
    this.code = code;
    this.retryAfterSeconds = options.retryAfterSeconds;
  }

  get status(): number {
    return errorKinds[this.code].status;
  }

  get retryable(): boolean {
    return errorKinds[this.code].retryable;
  }
}
