// Owns the way to a Thaw server: its address, the API key, deadlines, and JSON calls of the control plane.
// Refuses to own what a sandbox itself answers (sandbox-link.ts).
// Invariant: the key travels in a header and appears in no message; every call has a deadline.
import { Deadline } from './deadline.ts';
import { AuthenticationError, errorOfFetch, errorOfResponse, InvalidRequestError } from './errors.ts';

/** Where and as whom; what is left out comes from the environment. */
export interface ConnectionOptions {
  /** Address of the server. Default: `THAW_API_URL`, else `http://127.0.0.1:8080`. */
  apiUrl?: string | undefined;
  /** Default: `THAW_API_KEY`. */
  apiKey?: string | undefined;
  /** Milliseconds a call may take unless it says otherwise; 0: without limit. Default: 60 000. */
  requestTimeoutMs?: number | undefined;
}

/** What every call takes. */
export interface CallOptions {
  /** Milliseconds this call may take; 0: without limit. Default: the connection's. */
  requestTimeoutMs?: number | undefined;
  /** Ends the call with the signal's reason. */
  signal?: AbortSignal | undefined;
}

/** What `fetch` can send. */
export type RequestBody = NonNullable<RequestInit['body']>;

export interface Call extends CallOptions {
  method?: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE' | undefined;
  headers?: Record<string, string> | undefined;
  /** Sent as JSON. */
  json?: unknown;
  /** Sent as it is. */
  body?: RequestBody | undefined;
}

/** An answer that has begun: whoever reads its body ends the deadline. */
export interface OpenAnswer {
  response: Response;
  deadline: Deadline;
}

const defaultApiUrl = 'http://127.0.0.1:8080';
const defaultRequestTimeoutMs = 60_000;

export class Connection {
  readonly apiUrl: string;
  readonly requestTimeoutMs: number;
  readonly #apiKey: string;

  /** @throws {@link AuthenticationError} without a key, {@link InvalidRequestError} for an address that is none. */
  constructor(options: ConnectionOptions = {}) {
    this.apiUrl = (options.apiUrl ?? environment('THAW_API_URL') ?? defaultApiUrl).replace(/\/+$/, '');
    if (!URL.canParse(this.apiUrl) || !/^https?:/.test(this.apiUrl))
      throw new InvalidRequestError(`apiUrl: expected http://HOST:PORT, got ${this.apiUrl}`, {
        code: 'bad-request',
      });
    this.requestTimeoutMs = options.requestTimeoutMs ?? defaultRequestTimeoutMs;
    this.#apiKey = options.apiKey ?? environment('THAW_API_KEY') ?? '';
    if (this.#apiKey === '')
      throw new AuthenticationError('no API key: set THAW_API_KEY or give apiKey', {
        code: 'unauthenticated',
      });
  }

  /** The body of a success as JSON. @throws ThawError. */
  async json<T>(path: string, call: Call = {}): Promise<T> {
    return (await this.jsonWithHeaders<T>(path, call)).value;
  }

  async jsonWithHeaders<T>(path: string, call: Call = {}): Promise<{ value: T; headers: Headers }> {
    const { response, deadline } = await this.open(path, {
      ...call,
      headers: { ...this.credentials, ...call.headers },
    });
    const text = await textOf(response, deadline);
    return { value: (text === '' ? undefined : JSON.parse(text)) as T, headers: response.headers };
  }

  /** Every page of a list. @param limit at most so many rows. */
  async pages<T>(path: string, query: URLSearchParams, limit: number, call: Call = {}): Promise<T[]> {
    const rows: T[] = [];
    for (;;) {
      const { value, headers } = await this.jsonWithHeaders<T[]>(`${path}?${query}`, call);
      rows.push(...value);
      const next = headers.get('x-next-token');
      if (next === null || next === '' || rows.length >= limit) return rows.slice(0, limit);
      query.set('nextToken', next);
    }
  }

  get credentials(): Record<string, string> {
    return { 'x-api-key': this.#apiKey };
  }

  /** A success whose body is still to be read. @throws ThawError. */
  async open(path: string, call: Call): Promise<OpenAnswer> {
    const { response, deadline } = await this.request(path, call);
    if (response.ok) return { response, deadline };
    throw errorOfResponse(response.status, response.headers, await textOf(response, deadline));
  }

  /** Any answer, whatever its status. */
  async request(path: string, call: Call): Promise<OpenAnswer> {
    const { method = 'GET', headers = {}, json, body } = call;
    const what = `${method} ${path.split('?')[0]}`;
    const deadline = new Deadline(what, call.requestTimeoutMs ?? this.requestTimeoutMs, call.signal);
    try {
      const init = {
        method,
        headers: json === undefined ? headers : { 'content-type': 'application/json', ...headers },
        body: json === undefined ? body : JSON.stringify(json),
        signal: deadline.signal,
        redirect: 'manual',
        // Needed in Node for bodies that are streams, unknown elsewhere.
        ...(body instanceof ReadableStream ? { duplex: 'half' } : {}),
      } as RequestInit;
      return { response: await fetch(this.apiUrl + path, init), deadline };
    } catch (error) {
      deadline.clear();
      throw errorOfFetch(error, this.apiUrl);
    }
  }
}

/** Reads all of a body within the deadline, and ends it. */
export async function textOf(response: Response, deadline: Deadline): Promise<string> {
  try {
    return await response.text();
  } catch (error) {
    throw errorOfFetch(error, new URL(response.url).origin);
  } finally {
    deadline.clear();
  }
}

/** Browsers have no environment. */
function environment(name: string): string | undefined {
  const value = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env?.[
    name
  ];
  return value === '' ? undefined : value;
}
