// Owns calls to the agent inside one sandbox: who calls, where it goes, unary calls and event streams.
// Refuses to own any method's messages (commands.ts, files.ts, pty.ts).
// Invariant: a stream without its end frame is an error, never an end; a silent one is given up.
import { toBase64, toBytes } from './base64.ts';
import { encodeFrame, FrameDecoder } from './connect-frames.ts';
import { type Call, type CallOptions, type Connection, type OpenAnswer, textOf } from './connection.ts';
import { errorOfConnect, errorOfFetch, NotFoundError, ThawError, UnreachableError } from './errors.ts';

/** The agent's port inside every sandbox. */
export const agentPort = 49983;
/** Asked of the server; a stream from which nothing came for `silenceMs` is given up. */
const keepaliveSeconds = 30;
const silenceMs = 120_000;
const healthTimeoutMs = 5_000;
/** The server ends an overdue stream itself, in better words. */
const graceMs = 10_000;

/** What every call into a sandbox takes. */
export interface UserOptions extends CallOptions {
  /** Unix user that acts. Default: the sandbox's default user. */
  user?: string | undefined;
}

export interface StreamOptions extends UserOptions {
  /** Milliseconds the stream may last; 0: without limit. */
  timeoutMs?: number | undefined;
}

export interface SandboxIdentity {
  sandboxId: string;
  accessToken: string | undefined;
  trafficAccessToken: string | undefined;
}

/** The messages of one stream. `close` ends the listening and nothing else. */
export interface EventStream<T> {
  events: AsyncGenerator<T, void, undefined>;
  close(): void;
}

export class SandboxLink {
  readonly connection: Connection;
  readonly identity: SandboxIdentity;

  constructor(connection: Connection, identity: SandboxIdentity) {
    this.connection = connection;
    this.identity = identity;
  }

  /** Routing headers of a port of this sandbox. */
  routeTo(port: number): Record<string, string> {
    const { sandboxId, trafficAccessToken } = this.identity;
    return {
      'e2b-sandbox-id': sandboxId,
      'e2b-sandbox-port': String(port),
      ...(trafficAccessToken === undefined ? {} : { 'e2b-traffic-access-token': trafficAccessToken }),
    };
  }

  headers(user?: string): Record<string, string> {
    const { accessToken } = this.identity;
    return {
      ...this.routeTo(agentPort),
      ...(accessToken === undefined ? {} : { 'x-access-token': accessToken }),
      ...(user === undefined ? {} : { authorization: `Basic ${toBase64(toBytes(`${user}:`))}` }),
    };
  }

  open(path: string, call: Call & UserOptions): Promise<OpenAnswer> {
    return this.connection.open(path, { ...call, headers: { ...this.headers(call.user), ...call.headers } });
  }

  /** @param method for example `process.Process/List`. */
  async unary<T>(method: string, message: object, options: UserOptions = {}): Promise<T> {
    const headers = { 'connect-protocol-version': '1' };
    const { response, deadline } = await this.open(`/${method}`, {
      ...options,
      method: 'POST',
      json: message,
      headers,
    });
    return JSON.parse(await textOf(response, deadline)) as T;
  }

  /** Resolves with the stream when the server has accepted the call; its first event may still be to come. */
  async stream<T>(method: string, message: object, options: StreamOptions = {}): Promise<EventStream<T>> {
    const { timeoutMs = 0 } = options;
    const answer = await this.open(`/${method}`, {
      ...options,
      method: 'POST',
      body: encodeFrame(message),
      headers: {
        'content-type': 'application/connect+json',
        'connect-protocol-version': '1',
        'keepalive-ping-interval': String(keepaliveSeconds),
        ...(timeoutMs > 0 ? { 'connect-timeout-ms': String(Math.ceil(timeoutMs)) } : {}),
      },
    });
    const closed = new Closed();
    return {
      events: this.#events<T>(answer, method, timeoutMs),
      close: () => answer.deadline.abort(closed),
    };
  }

  /** False when the sandbox is killed, paused or timed out. @throws ThawError when that cannot be found out. */
  async isRunning(options: CallOptions = {}): Promise<boolean> {
    const call = { ...options, headers: this.routeTo(agentPort) };
    const { response, deadline } = await this.connection.request('/health', call);
    const text = await textOf(response, deadline);
    if (response.ok) return true;
    if (response.status === 502 && text.includes('was not found')) return false;
    throw new UnreachableError(`the sandbox's agent answered ${response.status}`, {
      code: 'guest-unreachable',
      status: response.status,
    });
  }

  async *#events<T>(
    answer: OpenAnswer,
    method: string,
    timeoutMs: number,
  ): AsyncGenerator<T, void, undefined> {
    const { deadline, response } = answer;
    const endsAtMs = timeoutMs > 0 ? performance.now() + timeoutMs + graceMs : Number.POSITIVE_INFINITY;
    const decoder = new FrameDecoder();
    try {
      const reader = response.body!.getReader();
      // Until the first event the call's own deadline holds.
      for (;;) {
        const { done, value } = await reader.read();
        if (done)
          throw new UnreachableError(`the stream of ${method} ended early`, { code: 'connection-lost' });
        // The time a listener takes is not the server's.
        deadline.pause();
        for (const { isEnd, message } of decoder.push(value)) {
          if (!isEnd) yield message as T;
          else if (message.error) throw errorOfConnect(message.error);
          else return;
        }
        deadline.restart(
          `an event of ${method}`,
          Math.min(silenceMs, Math.max(1, endsAtMs - performance.now())),
        );
      }
    } catch (error) {
      if (error instanceof Closed) return;
      throw await this.#explain(errorOfFetch(error, this.connection.apiUrl));
    } finally {
      deadline.abort(new Closed());
    }
  }

  /** A broken connection mostly means that the sandbox ended: then that is what the caller is told. */
  async #explain(error: unknown): Promise<unknown> {
    if (!(error instanceof ThawError) || error.code !== 'connection-lost') return error;
    const running = await this.isRunning({ requestTimeoutMs: healthTimeoutMs }).catch(() => true);
    if (running) return error;
    return new NotFoundError('the sandbox ended or was paused during the call', {
      code: 'sandbox-not-found',
      cause: error,
    });
  }
}

/** Reason of an abort that is no failure. */
class Closed extends Error {}
