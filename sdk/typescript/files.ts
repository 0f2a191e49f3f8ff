// Owns the files of a sandbox: contents over /files, everything else over filesystem.Filesystem.
// Refuses to own paths: relative ones start in the user's home, `~` is expanded, both in the sandbox.
// Invariant: contents are streamed where the caller streams; a transfer is given up when nothing moves any more.
import { type RequestBody, textOf } from './connection.ts';
import { Deadline } from './deadline.ts';
import { type EntryInfo, entryInfoOf, type WireEntry } from './entry-info.ts';
import { ConflictError, NotFoundError } from './errors.ts';
import { readPiecewise, sendPiecewise } from './piecewise.ts';
import type { SandboxLink, UserOptions } from './sandbox-link.ts';
import { type EventListener, WatchHandle, type WatchOptions } from './watch-handle.ts';

export type FileContent = string | Uint8Array<ArrayBuffer> | ArrayBuffer | Blob | ReadableStream<Uint8Array>;

export interface WriteOptions extends UserOptions {
  /** Kept with the file, see {@link EntryInfo.metadata}. Names are case-insensitive. */
  metadata?: Record<string, string> | undefined;
}

export interface WrittenFile {
  name: string;
  /** Absolute. */
  path: string;
}

/** A transfer that is slower is given up. */
const slowestBytesPerSecond = 1024 * 1024;

export class Files {
  readonly #link: SandboxLink;

  /** @internal */
  constructor(link: SandboxLink) {
    this.#link = link;
  }

  /**
   * Reads a file. `requestTimeoutMs` holds for each piece, not for all of them.
   * @param options.format `text` (default), `bytes`, or `stream`, which is not held in memory.
   * @throws {@link NotFoundError}, {@link InvalidRequestError} for a directory.
   */
  read(path: string, options?: UserOptions & { format?: 'text' | undefined }): Promise<string>;
  read(path: string, options: UserOptions & { format: 'bytes' }): Promise<Uint8Array>;
  read(path: string, options: UserOptions & { format: 'stream' }): Promise<ReadableStream<Uint8Array>>;
  async read(
    path: string,
    options: UserOptions & { format?: 'text' | 'bytes' | 'stream' | undefined } = {},
  ): Promise<string | Uint8Array | ReadableStream<Uint8Array>> {
    const { format = 'text', requestTimeoutMs = this.#link.connection.requestTimeoutMs } = options;
    const query = new URLSearchParams({ path });
    const { response, deadline } = await this.#link.open(`/files?${query}`, options);
    const stream = readPiecewise(response, deadline, `reading ${path}`, requestTimeoutMs);
    if (format === 'stream') return stream;
    const whole = new Response(stream);
    return format === 'text' ? await whole.text() : new Uint8Array(await whole.arrayBuffer());
  }

  /**
   * Writes a file, replacing one that is there; directories on the way are made.
   * A stream needs an engine that can send one: Node, Deno and Bun; browsers only over HTTP/2.
   * @throws {@link NoSpaceError} when the sandbox's disk is full, {@link InvalidRequestError} for a directory.
   */
  async write(path: string, data: FileContent, options: WriteOptions = {}): Promise<WrittenFile> {
    const headers: Record<string, string> = { 'content-type': 'application/octet-stream' };
    for (const [name, value] of Object.entries(options.metadata ?? {})) headers[`x-metadata-${name}`] = value;
    const { requestTimeoutMs = this.#link.connection.requestTimeoutMs } = options;
    const what = `writing ${path}`;
    const sending = new Deadline(what, transferTimeoutMs(requestTimeoutMs, data), options.signal);
    const body =
      data instanceof ReadableStream
        ? sendPiecewise(data, sending, what, requestTimeoutMs)
        : (data as RequestBody);
    const call = { method: 'POST', headers, body, requestTimeoutMs: 0, signal: sending.signal } as const;
    try {
      const query = new URLSearchParams({ path });
      const { response, deadline } = await this.#link.open(`/files?${query}`, { ...options, ...call });
      const [written] = JSON.parse(await textOf(response, deadline)) as [WrittenFile];
      return { name: written.name, path: written.path };
    } finally {
      sending.clear();
    }
  }

  /**
   * Lists a directory.
   * @param options.depth how many levels; default 1.
   * @throws {@link NotFoundError}, {@link InvalidRequestError} for a file.
   */
  async list(path: string, options: UserOptions & { depth?: number | undefined } = {}): Promise<EntryInfo[]> {
    const { depth = 1 } = options;
    const { entries = [] } = await this.#call<{ entries?: WireEntry[] }>('ListDir', { path, depth }, options);
    return entries.map(entryInfoOf);
  }

  async exists(path: string, options: UserOptions = {}): Promise<boolean> {
    try {
      await this.getInfo(path, options);
      return true;
    } catch (error) {
      if (error instanceof NotFoundError && error.code === 'not-found') return false;
      throw error;
    }
  }

  /** @throws {@link NotFoundError}. */
  async getInfo(path: string, options: UserOptions = {}): Promise<EntryInfo> {
    return entryInfoOf((await this.#call<{ entry: WireEntry }>('Stat', { path }, options)).entry);
  }

  /** Makes a directory and those on the way. @returns false when it was there already. */
  async makeDir(path: string, options: UserOptions = {}): Promise<boolean> {
    try {
      await this.#call('MakeDir', { path }, options);
      return true;
    } catch (error) {
      if (error instanceof ConflictError) return false;
      throw error;
    }
  }

  /** Moves a file or directory; directories on the way are made. @throws {@link NotFoundError}. */
  async rename(oldPath: string, newPath: string, options: UserOptions = {}): Promise<EntryInfo> {
    const message = { source: oldPath, destination: newPath };
    return entryInfoOf((await this.#call<{ entry: WireEntry }>('Move', message, options)).entry);
  }

  /** Removes a file, or a directory with all that is in it; nothing when there is none. */
  async remove(path: string, options: UserOptions = {}): Promise<void> {
    await this.#call('Remove', { path }, options);
  }

  /**
   * Calls `onEvent` for each change in a directory, from when this resolves until `stop`.
   * @throws {@link NotFoundError}, {@link InvalidRequestError} for a file.
   */
  watchDir(path: string, onEvent: EventListener, options: WatchOptions = {}): Promise<WatchHandle> {
    return WatchHandle.open(this.#link, path, onEvent, options);
  }

  #call<T>(method: string, message: object, options: UserOptions): Promise<T> {
    return this.#link.unary<T>(`filesystem.Filesystem/${method}`, message, options);
  }
}

/** What is sent at once is given time for its size; what is streamed is given time for each piece. */
function transferTimeoutMs(requestTimeoutMs: number, data: FileContent): number {
  if (requestTimeoutMs === 0 || data instanceof ReadableStream) return requestTimeoutMs;
  const sizeBytes =
    typeof data === 'string' ? data.length : data instanceof Blob ? data.size : data.byteLength;
  return requestTimeoutMs + Math.ceil(sizeBytes / slowestBytesPerSecond) * 1_000;
}
