// Owns functions as their author sees them: deploy, make from a snapshot, invoke, list, delete.
// Refuses to own packing a directory (pack-directory.ts). Invariant: `deploy` resolves when the function serves, not before.
import { type CallOptions, Connection, type ConnectionOptions } from './connection.ts';
import { BuildError, DeadlineExceededError, InvalidRequestError, NotFoundError } from './errors.ts';
import { packDirectory } from './pack-directory.ts';
import { answerOf, type PortRequest } from './ports.ts';

export interface DeployOptions extends CallOptions {
  /** Directory to deploy (Node only). Its name, or the one in its `thaw.json`, becomes the function's. */
  directory?: string | undefined;
  /** Or: a tar or tar.gz archive; then `name` is needed. */
  archive?: Uint8Array<ArrayBuffer> | Blob | undefined;
  name?: string | undefined;
  /** Milliseconds the build may take altogether. Default: 600 000. */
  timeoutMs?: number | undefined;
}

export interface FromSnapshotOptions extends CallOptions {
  name: string;
  /** Id or name of a sandbox's snapshot. */
  snapshotId: string;
  /** Port that answers requests, inside the sandbox; the server listens on 0.0.0.0. */
  port: number;
  /** Program that starts the server; default: it runs in the snapshot already. */
  command?: string[] | undefined;
  /** Of `command`. */
  envs?: Record<string, string> | undefined;
  /** Paths that a new instance must answer before it takes requests. Default: `/`. */
  prime?: string[] | undefined;
  /** Instances that wait for requests, and that there may be. */
  warm?: { min: number; max: number } | undefined;
  /** `fresh`: every request gets a new instance. Default: `reuse`. */
  recycle?: 'reuse' | 'fresh' | undefined;
  /** Requests that one instance serves at a time. Default: 1. */
  concurrency?: number | undefined;
  /** `key`: callers need an API key. Default: `public`. */
  auth?: 'public' | 'key' | undefined;
  /** Milliseconds that making it may take altogether. Default: 600 000. */
  timeoutMs?: number | undefined;
}

export interface FunctionVersion {
  name: string;
  version: number;
  state: string;
  snapshotId: string | null;
  createdAt: Date;
}

export interface FunctionInfo {
  name: string;
  /** Path on the server below which it answers. */
  url: string;
  currentVersion: number | null;
  versions: { version: number; state: string }[];
  createdAt: Date;
}

export interface InvokeOptions extends PortRequest {
  /** With its query. Default: `/`. */
  path?: string | undefined;
  /** A version other than the current one. */
  version?: number | undefined;
}

interface WireVersion {
  name: string;
  version: number;
  state: string;
  snapshotId: string | null;
  createdAt: string;
  error: { code: string; detail: string } | null;
}

type WireFunction = Omit<FunctionInfo, 'createdAt'> & { createdAt: string };

const defaultBuildTimeoutMs = 600_000;
/** How long one request waits for a build: less than any proxy's patience. */
const waitSeconds = 25;

export class Functions {
  readonly #connection: Connection;

  /** @throws {@link AuthenticationError} without an API key. */
  constructor(options: ConnectionOptions = {}) {
    this.#connection = new Connection(options);
  }

  /**
   * Deploys a new version and waits until it serves.
   * @throws {@link BuildError} with the end of the output, {@link InvalidRequestError} for a bad archive or manifest,
   * {@link DeadlineExceededError} after `timeoutMs`; the build then goes on.
   */
  async deploy(options: DeployOptions): Promise<FunctionVersion> {
    const { timeoutMs = defaultBuildTimeoutMs, signal, requestTimeoutMs } = options;
    const { name, archive } = await bundleOf(options);
    const endsAtMs = performance.now() + timeoutMs;
    const accepted = await this.#connection.json<WireVersion>(`${pathOf(name)}/versions`, {
      method: 'POST',
      body: archive,
      headers: { 'content-type': 'application/x-tar', prefer: `wait=${waitSeconds}` },
      signal,
      requestTimeoutMs: requestTimeoutMs ?? timeoutMs,
    });
    return await this.#whenReady(accepted, endsAtMs, options);
  }

  /**
   * Makes a sandbox's snapshot, in which a server runs or `command` starts one, a new version of a function, and waits
   * until it serves. The snapshot may then be deleted. Random numbers: Thaw reseeds the kernel of every instance, and
   * Node and Python programs that `command` starts; a server that ran before keeps its own generator's state, the same in
   * every instance, until it draws from the kernel again.
   * @throws {@link NotFoundError} when there is no such snapshot, {@link BuildError} when nothing answers on the port,
   * {@link DeadlineExceededError} after `timeoutMs`; the work then goes on.
   */
  async fromSnapshot(options: FromSnapshotOptions): Promise<FunctionVersion> {
    const {
      snapshotId,
      envs,
      timeoutMs = defaultBuildTimeoutMs,
      signal,
      requestTimeoutMs,
      ...rest
    } = options;
    const endsAtMs = performance.now() + timeoutMs;
    const accepted = await this.#connection.json<WireVersion>('/v1/functions', {
      method: 'POST',
      json: { ...rest, fromSnapshot: snapshotId, env: envs },
      headers: { prefer: `wait=${waitSeconds}` },
      signal,
      requestTimeoutMs: requestTimeoutMs ?? timeoutMs,
    });
    return await this.#whenReady(accepted, endsAtMs, options);
  }

  /**
   * Sends a request to a function. Any status is an answer, a failing function's own 500, too.
   * @throws {@link NotFoundError} when there is no such function, {@link RateLimitError}, {@link NoCapacityError},
   * {@link DeadlineExceededError}, {@link UnreachableError} when its VM died meanwhile.
   */
  async invoke(name: string, options: InvokeOptions = {}): Promise<Response> {
    const { path = '/', version, ...request } = options;
    const target = `/fn/${encodeURIComponent(name)}${version === undefined ? '' : `@${version}`}${path}`;
    const headers = { ...request.headers, ...this.#connection.credentials };
    const { response, deadline } = await this.#connection.request(target, { ...request, headers });
    return await answerOf(response, deadline, options.requestTimeoutMs ?? this.#connection.requestTimeoutMs);
  }

  async list(options: CallOptions = {}): Promise<FunctionInfo[]> {
    const { functions } = await this.#connection.json<{ functions: WireFunction[] }>(
      '/v1/functions',
      options,
    );
    return functions.map(infoOf);
  }

  /** @throws {@link NotFoundError}. */
  async get(name: string, options: CallOptions = {}): Promise<FunctionInfo> {
    return infoOf(await this.#connection.json<WireFunction>(pathOf(name), options));
  }

  /** Removes a function with all its versions. @returns false when there is none of that name. */
  async delete(name: string, options: CallOptions = {}): Promise<boolean> {
    try {
      await this.#connection.json(pathOf(name), { ...options, method: 'DELETE' });
      return true;
    } catch (error) {
      if (error instanceof NotFoundError) return false;
      throw error;
    }
  }

  async #whenReady(
    accepted: WireVersion,
    endsAtMs: number,
    { signal, requestTimeoutMs }: CallOptions,
  ): Promise<FunctionVersion> {
    const path = `${pathOf(accepted.name)}/versions/${accepted.version}`;
    let record = accepted;
    while (record.state === 'building') {
      if (performance.now() > endsAtMs)
        throw new DeadlineExceededError(`building ${record.name}@${record.version} takes longer`, {
          code: 'deadline-exceeded',
        });
      await new Promise((resolve) => setTimeout(resolve, pollMs));
      record = await this.#connection.json<WireVersion>(path, { signal, requestTimeoutMs });
    }
    if (record.error !== null) throw new BuildError(record.error.detail, { code: record.error.code });
    const { name, version, state, snapshotId, createdAt } = record;
    return { name, version, state, snapshotId, createdAt: new Date(createdAt) };
  }
}

/** Builds take seconds to minutes. */
const pollMs = 500;

const pathOf = (name: string): string => `/v1/functions/${encodeURIComponent(name)}`;

const infoOf = ({ name, url, currentVersion, versions, createdAt }: WireFunction): FunctionInfo => ({
  name,
  url,
  currentVersion,
  versions,
  createdAt: new Date(createdAt),
});

async function bundleOf({ directory, archive, name }: DeployOptions) {
  if (directory !== undefined && archive === undefined) return await packDirectory(directory, name);
  if (archive !== undefined && name !== undefined && directory === undefined) return { name, archive };
  throw new InvalidRequestError('deploy: give a directory, or an archive and a name', {
    code: 'bad-request',
  });
}
