// Owns one conversation with a Cloud Hypervisor process over its API socket: requests one after the other, each with a
// deadline. Refuses to own what an error means (failures.ts) and the process itself.
// Invariant: a request whose deadline passes ends the process: what it was doing then is unknown to everybody.
import { Client } from 'undici';
import { withDeadline } from '../../../shared/deadline.ts';
import type { VmConfig } from './vm-config.ts';

/** Its API thread does one thing at a time and answers when it is done: these are the times of work, not of answers. */
const defaultTimeouts = { actionMs: 10_000, longActionMs: 60_000 };
const maxBodyBytes = 51_200;

export interface Ping {
  version: string;
  build_version?: string;
  pid?: number;
}

export interface VmInfo {
  state: 'Created' | 'Running' | 'Shutdown' | 'Paused';
}

export interface RestoreCall {
  source_url: string;
  memory_restore_mode: 'Copy' | 'OnDemand';
  resume: boolean;
}

/** The API's own refusal: outermost words first, the root cause last. */
export class ApiRefusal extends Error {
  readonly status: number;
  readonly chain: readonly string[];

  constructor(call: string, status: number, chain: readonly string[]) {
    super(`${call}: ${chain.join(' ← ')} (${status})`);
    this.name = 'ApiRefusal';
    this.status = status;
    this.chain = chain;
  }
}

export class ApiClient {
  readonly #client: Client;
  readonly #onExpiry: () => void;
  readonly #timeouts: typeof defaultTimeouts;

  /** @param onExpiry ends the process. */
  constructor(socketPath: string, onExpiry: () => void, timeouts = defaultTimeouts) {
    this.#timeouts = timeouts;
    // The process has one thread for all connections and allows ten: one is enough, and nothing is sent ahead.
    this.#client = new Client('http://localhost', {
      socketPath,
      pipelining: 1,
      headersTimeout: 0,
      bodyTimeout: 0,
    });
    this.#onExpiry = onExpiry;
  }

  async ping(): Promise<Ping> {
    return JSON.parse(await this.#send('GET', 'vmm.ping')) as Ping;
  }

  async info(): Promise<VmInfo> {
    return JSON.parse(await this.#send('GET', 'vm.info')) as VmInfo;
  }

  async create(config: VmConfig): Promise<void> {
    await this.#send('PUT', 'vm.create', config);
  }

  async boot(): Promise<void> {
    await this.#send('PUT', 'vm.boot');
  }

  async pause(): Promise<void> {
    await this.#send('PUT', 'vm.pause', undefined, this.#timeouts.longActionMs);
  }

  async resume(): Promise<void> {
    await this.#send('PUT', 'vm.resume');
  }

  async snapshot(destinationUrl: string): Promise<void> {
    await this.#send('PUT', 'vm.snapshot', { destination_url: destinationUrl }, this.#timeouts.longActionMs);
  }

  async restore(call: RestoreCall): Promise<void> {
    await this.#send('PUT', 'vm.restore', call, this.#timeouts.longActionMs);
  }

  /** The answer to this one may be the end of the connection. */
  async shutdownVmm(): Promise<void> {
    await this.#send('PUT', 'vmm.shutdown').catch((error: Error) => {
      if (error instanceof ApiRefusal) throw error;
    });
  }

  close(): Promise<void> {
    return this.#client.destroy();
  }

  async #send(
    method: 'GET' | 'PUT',
    call: string,
    body?: object,
    timeoutMs = this.#timeouts.actionMs,
  ): Promise<string> {
    // A string, never a stream: the server knows no chunked bodies, and refuses a body where none belongs.
    const text = body === undefined ? undefined : JSON.stringify(body);
    if (text !== undefined && Buffer.byteLength(text) > maxBodyBytes)
      throw new ApiRefusal(call, 413, [`a body of more than ${maxBodyBytes} bytes`]);
    try {
      return await withDeadline(call, timeoutMs, this.#exchange(method, call, text));
    } catch (error) {
      if ((error as { code?: string }).code === 'deadline-exceeded') this.#onExpiry();
      throw error;
    }
  }

  async #exchange(method: 'GET' | 'PUT', call: string, body: string | undefined): Promise<string> {
    const response = await this.#client.request({
      method,
      path: `/api/v1/${call}`,
      body: body ?? null,
      headers: body === undefined ? {} : { 'content-type': 'application/json' },
    });
    const text = await response.body.text();
    if (response.statusCode < 300) return text;
    throw new ApiRefusal(call, response.statusCode, chainOf(text));
  }
}

/** An array of strings from the API; from its HTTP parser an object with a raw line break in it, which is no JSON. */
function chainOf(text: string): string[] {
  try {
    const value: unknown = JSON.parse(text);
    if (Array.isArray(value)) return value.map(String);
  } catch {}
  const parseError = /"error":\s*"([^\n"]*)/.exec(text)?.[1];
  return [parseError ?? (text.trim() || 'no reason given')];
}
