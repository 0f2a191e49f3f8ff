// Owns the CLI's way to a running Thaw: where it is, the API key, and what its failures mean.
// Refuses to own any command's words. Invariant: the key appears in no message.
import { readFile } from 'node:fs/promises';
import { Agent, type Dispatcher, request } from 'undici';
import { pathsOf } from '../../pool/host/paths.ts';
import type { ResolvedConfig } from '../../shared/config.ts';
import { apiKeyPattern } from '../../shared/ids.ts';
import { runningHolder } from './data-dir-lock.ts';
import { ApiError, NotReachableError, UsageError } from './failure.ts';

export interface ApiCall {
  method?: Dispatcher.HttpMethod;
  headers?: Record<string, string>;
  body?: Dispatcher.DispatchOptions['body'];
  signal?: AbortSignal;
  /** Milliseconds until response headers; what a caller waits for on purpose needs more. */
  headersTimeoutMs?: number;
}

export type ApiResponse = Dispatcher.ResponseData;

export interface ApiClient {
  readonly url: string;
  /** For clients of others' making. */
  readonly apiKey: string;
  /** Any answer, whatever its status. @throws NotReachableError. */
  send(path: string, call?: ApiCall): Promise<ApiResponse>;
  /** The body of a success as JSON. @throws ApiError | NotReachableError. */
  json<T>(path: string, call?: ApiCall): Promise<T>;
  /** A success with its body still to be read. @throws ApiError | NotReachableError. */
  open(path: string, call?: ApiCall): Promise<ApiResponse>;
  close(): Promise<void>;
}

const defaultHeadersTimeoutMs = 60_000;
const connectTimeoutMs = 5_000;
/** Enough for any failure's body; the rest of a longer one says nothing more. */
const maxErrorBytes = 256 * 1024;

/** @throws UsageError when there is no key to be found. */
export async function createApiClient(resolved: ResolvedConfig, urlFlag?: string): Promise<ApiClient> {
  const url = (urlFlag ?? (await urlOf(resolved))).replace(/\/+$/, '');
  if (!URL.canParse(url) || !/^https?:/.test(url))
    throw new UsageError(`--url: expected http://HOST:PORT, got ${url}`);
  return new HttpApiClient(url, await apiKeyOf(resolved));
}

/** What was asked for, else where the Thaw of this data directory says it answers. */
async function urlOf({ config, sources }: ResolvedConfig): Promise<string> {
  const asked = sources.host !== 'default' || sources.port !== 'default';
  const holder = asked ? undefined : await runningHolder(pathsOf(config.dataDir).lock);
  return holder?.url ?? `http://${urlHost(config.host)}:${config.port}`;
}

/** The host part of a URL; an address that means "all" is reached on loopback. */
export function urlHost(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1';
  if (host === '::') return '[::1]';
  return host.includes(':') ? `[${host}]` : host;
}

async function apiKeyOf({ config }: ResolvedConfig): Promise<string> {
  if (config.apiKey !== undefined) return config.apiKey;
  const path = pathsOf(config.dataDir).apiKey;
  const key = await readFile(path, 'utf8').then(
    (text) => text.trim(),
    () => undefined,
  );
  if (key === undefined)
    throw new UsageError(`no API key: set THAW_API_KEY, or start Thaw, which writes one to ${path}`);
  if (!apiKeyPattern.test(key)) throw new UsageError(`${path} holds no API key`);
  return key;
}

class HttpApiClient implements ApiClient {
  readonly url: string;
  readonly apiKey: string;
  readonly #agent = new Agent({ connect: { timeout: connectTimeoutMs }, bodyTimeout: 0 });

  constructor(url: string, apiKey: string) {
    this.url = url;
    this.apiKey = apiKey;
  }

  async send(path: string, call: ApiCall = {}): Promise<ApiResponse> {
    try {
      return await request(`${this.url}${path}`, {
        method: call.method ?? 'GET',
        headers: { 'x-api-key': this.apiKey, ...call.headers },
        body: call.body ?? null,
        dispatcher: this.#agent,
        headersTimeout: call.headersTimeoutMs ?? defaultHeadersTimeoutMs,
        ...(call.signal ? { signal: call.signal } : {}),
      });
    } catch (error) {
      if (call.signal?.aborted) throw error;
      throw this.#unreachable(error as NodeJS.ErrnoException);
    }
  }

  async open(path: string, call: ApiCall = {}): Promise<ApiResponse> {
    const response = await this.send(path, call);
    if (response.statusCode < 400) return response;
    throw await apiErrorOf(response);
  }

  async json<T>(path: string, call: ApiCall = {}): Promise<T> {
    const response = await this.open(path, call);
    const text = await response.body.text();
    return (text === '' ? undefined : JSON.parse(text)) as T;
  }

  close(): Promise<void> {
    // Not `close`: a log stream that was left would be waited for.
    return this.#agent.destroy();
  }

  #unreachable(error: NodeJS.ErrnoException): Error {
    const code = error.code ?? '';
    if (code === 'UND_ERR_HEADERS_TIMEOUT')
      return new NotReachableError(`${this.url} did not answer in time`);
    if (/^(ECONNREFUSED|ENOTFOUND|EHOSTUNREACH|ENETUNREACH|EAI_AGAIN|UND_ERR_CONNECT_TIMEOUT)$/.test(code))
      return new NotReachableError(`nothing answers on ${this.url}; is \`thaw up\` running?`);
    if (/^(ECONNRESET|EPIPE|UND_ERR_SOCKET)$/.test(code))
      return new NotReachableError(`${this.url} closed the connection before it answered`);
    return error;
  }
}

/** Both shapes of failures: problem details of our own routes, `{ code, message }` of E2B's. */
export async function apiErrorOf(response: ApiResponse): Promise<ApiError> {
  const text = await limitedText(response.body, maxErrorBytes);
  const body = parsedObject(text);
  const code = body.code ?? response.headers['x-thaw-error'] ?? response.statusCode;
  const requestId = body.requestId ?? response.headers['x-request-id'];
  const named = typeof code === 'string' ? code : String(response.headers['x-thaw-error'] ?? code);
  const detail = String(body.detail ?? body.message ?? (text.trim() || `HTTP ${response.statusCode}`));
  return new ApiError(
    response.statusCode,
    named,
    detail,
    requestId === undefined ? undefined : String(requestId),
  );
}

function parsedObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

/** Reads at most this much, and lets go of the rest. */
export async function limitedText(body: AsyncIterable<Buffer>, maxBytes: number): Promise<string> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of body) {
    chunks.push(chunk.subarray(0, maxBytes - sizeBytes));
    sizeBytes += chunk.length;
    if (sizeBytes >= maxBytes) break;
  }
  return Buffer.concat(chunks).toString('utf8');
}
