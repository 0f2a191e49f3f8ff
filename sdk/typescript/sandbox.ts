// Owns one sandbox as its user sees it: create, connect, pause, snapshot, fork, end; and its commands, files, terminals.
// Refuses to own what runs inside (commands.ts, files.ts, pty.ts).
// Invariant: an object of this class has an id and a token that the server gave; it holds no state of the sandbox.
import { Commands } from './commands.ts';
import { type CallOptions, Connection, type ConnectionOptions } from './connection.ts';
import { ConflictError, errorOfEntry, NotFoundError } from './errors.ts';
import { Files } from './files.ts';
import { hostOf, type PortRequest, requestPort } from './ports.ts';
import { Pty } from './pty.ts';
import {
  type NetworkOptions,
  type SandboxInfo,
  type SandboxMetrics,
  type SandboxState,
  type SnapshotInfo,
  sandboxInfoOf,
  sandboxMetricsOf,
  snapshotInfoOf,
  type WireConnection,
  type WireMetrics,
  type WireSandbox,
  type WireSnapshot,
} from './sandbox-info.ts';
import { SandboxLink } from './sandbox-link.ts';
import { listSnapshots } from './snapshots.ts';

export interface LifetimeOptions {
  /** Milliseconds the sandbox may live from now. Default: 300 000. */
  timeoutMs?: number | undefined;
}

export interface CreateOptions extends ConnectionOptions, CallOptions, LifetimeOptions {
  /** Template it is a clone of. Default: `base`. */
  template?: string | undefined;
  /** Snapshot it goes on from, instead of a template. */
  snapshotId?: string | undefined;
  /** Shown in lists, and a filter there. */
  metadata?: Record<string, string> | undefined;
  /** Environment of all its commands. */
  envs?: Record<string, string> | undefined;
  /** What happens at the end of its time. Default: `kill`. */
  onTimeout?: 'kill' | 'pause' | undefined;
  /** True: a paused one resumes when a request reaches it. */
  autoResume?: boolean | undefined;
  /** Default: true. */
  allowInternetAccess?: boolean | undefined;
  network?: NetworkOptions | undefined;
}

export interface ConnectOptions extends ConnectionOptions, CallOptions, LifetimeOptions {}

export interface ListOptions extends ConnectionOptions, CallOptions {
  /** Only those that have all of these. */
  metadata?: Record<string, string> | undefined;
  /** Default: both. */
  state?: SandboxState[] | undefined;
  /** Only those of this template or snapshot. */
  template?: string | undefined;
  /** At most so many. Default: all. */
  limit?: number | undefined;
}

export interface ForkOptions extends CallOptions, LifetimeOptions {
  /** How many. Default: 1. */
  count?: number | undefined;
}

const defaultTimeoutMs = 300_000;
const seconds = (timeoutMs: number): number => Math.ceil(timeoutMs / 1_000);

export class Sandbox {
  readonly sandboxId: string;
  readonly templateId: string;
  /** Needed by requests to its ports when `allowPublicTraffic` is false. */
  readonly trafficAccessToken: string | undefined;
  readonly commands: Commands;
  readonly files: Files;
  readonly pty: Pty;
  readonly #connection: Connection;
  readonly #link: SandboxLink;
  readonly #domain: string | undefined;

  private constructor(connection: Connection, wire: WireConnection) {
    this.sandboxId = wire.sandboxID;
    this.templateId = wire.templateID;
    this.trafficAccessToken = wire.trafficAccessToken ?? undefined;
    this.#connection = connection;
    this.#domain = wire.domain ?? undefined;
    this.#link = new SandboxLink(connection, {
      sandboxId: wire.sandboxID,
      accessToken: wire.envdAccessToken ?? undefined,
      trafficAccessToken: this.trafficAccessToken,
    });
    this.commands = new Commands(this.#link);
    this.files = new Files(this.#link);
    this.pty = new Pty(this.#link);
  }

  /**
   * Starts a new sandbox: a clone of a template, or of a snapshot, which then goes on exactly where it was taken.
   * @throws {@link NotFoundError} for an unknown template or snapshot, {@link NoCapacityError} when there is no room,
   * {@link AuthenticationError}.
   */
  static async create(options: CreateOptions = {}): Promise<Sandbox> {
    const { requestTimeoutMs, signal } = options;
    const connection = new Connection(options);
    const json = createBody(options);
    const call = { method: 'POST', json, requestTimeoutMs, signal } as const;
    return new Sandbox(connection, await connection.json<WireConnection>('/v2/sandboxes', call));
  }

  /** Reaches a sandbox that exists; a paused one resumes. @throws {@link NotFoundError}. */
  static async connect(sandboxId: string, options: ConnectOptions = {}): Promise<Sandbox> {
    const connection = new Connection(options);
    return new Sandbox(connection, await connect(connection, sandboxId, options));
  }

  /** The sandboxes that run or are paused, newest first. */
  static async list(options: ListOptions = {}): Promise<SandboxInfo[]> {
    const { limit = Number.POSITIVE_INFINITY, requestTimeoutMs, signal } = options;
    const connection = new Connection(options);
    const call = { requestTimeoutMs, signal };
    const rows = await connection.pages<WireSandbox>('/v2/sandboxes', listQuery(options), limit, call);
    return rows.map(sandboxInfoOf);
  }

  /** Ends a sandbox, running or paused. @returns false when there is none of that id. */
  static kill(sandboxId: string, options: ConnectionOptions & CallOptions = {}): Promise<boolean> {
    const { requestTimeoutMs, signal } = options;
    return killSandbox(new Connection(options), sandboxId, { requestTimeoutMs, signal });
  }

  /**
   * Saves the complete state of the sandbox at this instant: memory, file system, processes. It pauses briefly and goes on.
   * The snapshot outlives the sandbox; `Sandbox.create({ snapshotId })` starts new ones from it.
   * @throws {@link NotFoundError}, {@link ConflictError} while it is paused, {@link NoSpaceError}.
   */
  async createSnapshot(options: CallOptions & { name?: string | undefined } = {}): Promise<SnapshotInfo> {
    const { name, ...call } = options;
    const json = name === undefined ? {} : { name };
    return snapshotInfoOf(await this.#post<WireSnapshot>('snapshots', json, call));
  }

  /** The snapshots taken of this sandbox, newest first. */
  listSnapshots(options: CallOptions & { limit?: number | undefined } = {}): Promise<SnapshotInfo[]> {
    return listSnapshots(this.#connection, { ...options, sandboxId: this.sandboxId });
  }

  /**
   * Stops it and frees its memory; id, files and processes stay. Connections to it break.
   * @returns false when it was paused before. @throws {@link NotFoundError}.
   */
  async pause(options: CallOptions = {}): Promise<boolean> {
    try {
      await this.#post('pause', {}, options);
      return true;
    } catch (error) {
      if (error instanceof ConflictError) return false;
      throw error;
    }
  }

  /** Goes on where `pause` stopped it; one that runs only gets the time. @throws {@link NotFoundError}. */
  async resume(options: CallOptions & LifetimeOptions = {}): Promise<void> {
    await connect(this.#connection, this.sandboxId, options);
  }

  /**
   * Starts new sandboxes that go on from this one's present state; this one goes on, too.
   * @returns as many as were asked for. When one cannot be started, the others are killed and its error is thrown.
   * @throws {@link NotFoundError}, {@link ConflictError} while it is paused, {@link NoCapacityError}.
   */
  async fork(options: ForkOptions = {}): Promise<Sandbox[]> {
    const { count = 1, timeoutMs = defaultTimeoutMs, ...call } = options;
    const json = { count, timeout: seconds(timeoutMs) };
    const results = await this.#post<WireFork[]>('fork', json, call);
    const forks = results.flatMap(({ sandbox }) =>
      sandbox === undefined ? [] : [new Sandbox(this.#connection, sandbox)],
    );
    const error = results.find((result) => result.error !== undefined)?.error;
    if (error === undefined) return forks;
    await Promise.allSettled(forks.map((fork) => fork.kill()));
    throw errorOfEntry(error);
  }

  /** Ends it; its snapshots stay. @returns false when it had ended before. */
  kill(options: CallOptions = {}): Promise<boolean> {
    return killSandbox(this.#connection, this.sandboxId, options);
  }

  /** Moves its end to `timeoutMs` milliseconds from now, earlier or later. @throws {@link NotFoundError}. */
  async setTimeout(timeoutMs: number, options: CallOptions = {}): Promise<void> {
    await this.#post('timeout', { timeout: seconds(timeoutMs) }, options);
  }

  /** False when it is killed, paused or timed out. */
  isRunning(options: CallOptions = {}): Promise<boolean> {
    return this.#link.isRunning(options);
  }

  /** @throws {@link NotFoundError}. */
  async getInfo(options: CallOptions = {}): Promise<SandboxInfo> {
    return sandboxInfoOf(await this.#connection.json<WireSandbox>(this.#path(), options));
  }

  /** Samples of what it used, oldest first. */
  async getMetrics(options: CallOptions = {}): Promise<SandboxMetrics[]> {
    const rows = await this.#connection.json<WireMetrics[]>(this.#path('metrics'), options);
    return rows.map(sandboxMetricsOf);
  }

  /** Replaces the rules for its traffic. */
  async setNetwork(network: NetworkOptions, options: CallOptions = {}): Promise<void> {
    await this.#connection.json(this.#path('network'), { ...options, method: 'PUT', json: network });
  }

  /**
   * The host name, with the port if it needs one, under which a port of the sandbox is reached, for browsers and others.
   * It must resolve: a server on this machine is given a name below `localhost`, any other needs a wildcard DNS entry.
   */
  getHost(port: number): string {
    return hostOf(this.sandboxId, port, this.#domain ?? this.#connection.apiUrl);
  }

  /**
   * Requests something of a port of the sandbox, through the server and without DNS. Any status is an answer.
   * @param path with its query, beginning with `/`. @throws {@link UnreachableError} when nothing listens there.
   */
  fetch(port: number, path: string, request: PortRequest = {}): Promise<Response> {
    return requestPort(this.#link, port, path, request);
  }

  /** `await using sandbox = …` kills it at the end of the block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }

  #path(verb?: string): string {
    const path = `/sandboxes/${encodeURIComponent(this.sandboxId)}`;
    return verb === undefined ? path : `${path}/${verb}`;
  }

  #post<T>(verb: string, json: object, options: CallOptions): Promise<T> {
    return this.#connection.json<T>(this.#path(verb), { ...options, method: 'POST', json });
  }
}

interface WireFork {
  sandbox?: WireConnection;
  error?: { code: number; message: string };
}

function createBody(options: CreateOptions): object {
  const { template, snapshotId, metadata, envs, onTimeout, autoResume, network } = options;
  return {
    templateID: snapshotId ?? template ?? 'base',
    timeout: seconds(options.timeoutMs ?? defaultTimeoutMs),
    metadata,
    envVars: envs,
    network,
    allow_internet_access: options.allowInternetAccess,
    ...(onTimeout === undefined ? {} : { autoPause: onTimeout === 'pause' }),
    ...(autoResume === undefined ? {} : { autoResume: { enabled: autoResume } }),
  };
}

function connect(connection: Connection, sandboxId: string, options: CallOptions & LifetimeOptions) {
  const { requestTimeoutMs, signal, timeoutMs = defaultTimeoutMs } = options;
  const path = `/v2/sandboxes/${encodeURIComponent(sandboxId)}/connect`;
  const json = { timeout: seconds(timeoutMs) };
  return connection.json<WireConnection>(path, { method: 'POST', json, requestTimeoutMs, signal });
}

async function killSandbox(connection: Connection, sandboxId: string, options: CallOptions) {
  try {
    const path = `/sandboxes/${encodeURIComponent(sandboxId)}`;
    await connection.json(path, { ...options, method: 'DELETE' });
    return true;
  } catch (error) {
    if (error instanceof NotFoundError) return false;
    throw error;
  }
}

/** Metadata is a form within the query: its keys and values are encoded twice. */
function listQuery({ metadata, state, template }: ListOptions): URLSearchParams {
  const query = new URLSearchParams();
  if (state !== undefined) query.set('state', state.join(','));
  if (template !== undefined) query.set('template', template);
  if (metadata === undefined) return query;
  const pairs = Object.entries(metadata).map((pair) => pair.map(encodeURIComponent) as [string, string]);
  query.set('metadata', new URLSearchParams(pairs).toString());
  return query;
}
