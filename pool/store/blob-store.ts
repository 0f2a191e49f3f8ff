// Owns the blob store port: what every store of immutable objects offers, its errors and the grammar of keys.
// Refuses to own how a store is reached (adapters), how often it is asked again (decorators) and what objects mean.
// Invariant: an object is seen whole or not at all; whatever fails is a StoreError; no request is without a deadline.
import type { Readable } from 'node:stream';
import { type ErrorCode, ThawError } from '../../shared/errors.ts';

export interface RequestOptions {
  signal?: AbortSignal;
  /** For the whole request, retries and hedges included; `defaultTimeoutMs` when absent. */
  timeoutMs?: number;
}

export interface ByteRange {
  offsetBytes: number;
  sizeBytes: number;
}

export interface GetOptions extends RequestOptions {
  /** Must lie inside the object; the whole object when absent. */
  range?: ByteRange;
}

export interface ListOptions extends RequestOptions {
  /** Keys after this one, in byte order; from the first when absent. */
  after?: string;
  /** At most this many, 1 to 1000. */
  limit?: number;
}

export interface BlobInfo {
  key: string;
  sizeBytes: number;
  modifiedAtMs: number;
}

export interface ListPage<T> {
  /** Ascending in byte order of the key. */
  entries: T[];
  /** Give it as `after` to go on; undefined when nothing more is there. */
  next: string | undefined;
}

/** Part of a local file that becomes an object. The file must not change meanwhile. */
export interface FileSource extends ByteRange {
  path: string;
}

/** `exists`: an object of that name was there already and was left as it is. */
export type PutOutcome = 'created' | 'exists';

export interface BlobStore {
  /** For people and logs; holds no secret. */
  readonly url: string;
  /** Puts if absent, atomically: of two at once one is `created`. */
  put(key: string, body: Uint8Array, options?: RequestOptions): Promise<PutOutcome>;
  /** As `put`, for what is too big for memory; sent in parts where that pays. */
  putFile(key: string, source: FileSource, options?: RequestOptions): Promise<PutOutcome>;
  /** Puts over whatever is there, atomically. Only for what is an index or a lease, never for content. */
  replace(key: string, body: Uint8Array, options?: RequestOptions): Promise<void>;
  get(key: string, options?: GetOptions): Promise<Buffer>;
  /** As `get`, in pieces. The deadline is for the whole stream; what fails on the way destroys it with a StoreError. */
  getStream(key: string, options?: GetOptions): Promise<Readable>;
  /** @returns undefined when there is no such object. */
  head(key: string, options?: RequestOptions): Promise<BlobInfo | undefined>;
  list(prefix: string, options?: ListOptions): Promise<ListPage<BlobInfo>>;
  /** As `list`, where sizes and times do not matter and are not paid for. */
  listKeys(prefix: string, options?: ListOptions): Promise<ListPage<string>>;
  /** Succeeds when there is no such object. */
  delete(key: string, options?: RequestOptions): Promise<void>;
  /** Removes what interrupted puts older than this left behind. @returns how many. */
  sweepUnfinished(olderThanMs: number, options?: RequestOptions): Promise<number>;
  close(): Promise<void>;
}

export const defaultTimeoutMs = 30_000;
export const maxListLimit = 1000;
/** What `get` takes into memory at most. */
export const maxGetBytes = 256 * 1024 * 1024;

export type StoreFailure =
  /** No such object. */
  | 'absent'
  /** The range is not inside the object, or the object ended early. */
  | 'out-of-range'
  /** The store does not answer, or answers that it cannot now: worth another try. */
  | 'unavailable'
  /** Not even tried: the store has been failing, or too many requests wait for it. */
  | 'not-tried'
  /** The request's own deadline passed. */
  | 'deadline'
  /** The caller's signal ended it. */
  | 'aborted'
  /** Credentials, permissions, bucket, an operation that this store does not know: will not get better by itself. */
  | 'refused'
  /** No space left. */
  | 'full'
  /** The caller's mistake: key, range, size. */
  | 'invalid';

const codeOf: Record<StoreFailure, ErrorCode> = {
  absent: 'snapshot-damaged',
  'out-of-range': 'snapshot-damaged',
  unavailable: 'store-unavailable',
  'not-tried': 'store-unavailable',
  deadline: 'deadline-exceeded',
  aborted: 'deadline-exceeded',
  refused: 'store-refused',
  full: 'no-space',
  invalid: 'bad-request',
};

/** Failures after which the same request may succeed. */
export const isTransient = (error: unknown): boolean =>
  error instanceof StoreError && error.failure === 'unavailable';

export class StoreError extends ThawError {
  readonly failure: StoreFailure;

  constructor(
    failure: StoreFailure,
    detail: string,
    options: { cause?: unknown; retryAfterSeconds?: number } = {},
  ) {
    super(codeOf[failure], detail, options);
    this.failure = failure;
  }
}

const keyPattern = /^[a-z0-9][a-z0-9._-]*(\/[a-z0-9][a-z0-9._-]*)*$/;
const maxKeyBytes = 512;

/** Keys are lower-case path segments that never begin with a dot: safe as a path and as an object name. */
export function checkKey(key: string): string {
  if (key.length > maxKeyBytes || !keyPattern.test(key))
    throw new StoreError('invalid', `not a valid object name: ${JSON.stringify(key.slice(0, 64))}`);
  return key;
}

/** A prefix is empty or whole path segments, ending in '/'. */
export function checkPrefix(prefix: string): string {
  if (prefix !== '' && !(prefix.endsWith('/') && checkKey(prefix.slice(0, -1))))
    throw new StoreError('invalid', `a prefix ends in '/': ${JSON.stringify(prefix.slice(0, 64))}`);
  return prefix;
}

export function checkRange(range: ByteRange): ByteRange {
  const { offsetBytes, sizeBytes } = range;
  const whole = Number.isSafeInteger(offsetBytes) && Number.isSafeInteger(sizeBytes);
  if (!whole || offsetBytes < 0 || sizeBytes < 1 || sizeBytes > maxGetBytes)
    throw new StoreError('invalid', `not a valid range: ${sizeBytes} bytes at ${offsetBytes}`);
  return range;
}

export function limitOf(options: ListOptions): number {
  const { limit = maxListLimit } = options;
  if (!Number.isInteger(limit) || limit < 1 || limit > maxListLimit)
    throw new StoreError('invalid', `a list gives 1 to ${maxListLimit} entries, not ${limit}`);
  return limit;
}

/** Every key under `prefix`, page by page. */
export async function* allKeys(
  store: BlobStore,
  prefix: string,
  options: RequestOptions = {},
): AsyncGenerator<string> {
  for (let after: string | undefined; ; ) {
    const page = await store.listKeys(prefix, { ...options, ...(after === undefined ? {} : { after }) });
    yield* page.entries;
    if (page.next === undefined) return;
    after = page.next;
  }
}

/** Every object under `prefix`, page by page. */
export async function* allBlobs(
  store: BlobStore,
  prefix: string,
  options: RequestOptions = {},
): AsyncGenerator<BlobInfo> {
  for (let after: string | undefined; ; ) {
    const page = await store.list(prefix, { ...options, ...(after === undefined ? {} : { after }) });
    yield* page.entries;
    if (page.next === undefined) return;
    after = page.next;
  }
}
