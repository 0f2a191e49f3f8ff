// Owns envd's watching methods: a stream of a directory's events, and watchers that are asked for theirs.
// Refuses to own what is watched (directory-watch.ts). Loaded when the first directory is watched.
// Invariant: what waits for a client has a limit, and a client that missed an event is told so, never left to guess.
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ConnectError } from '../../shared/connect-frames.ts';
import type { Caller } from './caller.ts';
import { flagField, type Message, type ServerStream, textField } from './connect-json.ts';
import { asWatchError, DirectoryWatch, type WatchEvent } from './directory-watch.ts';
import { EntryReader, isLocal } from './entry-info.ts';
import { asFileError, pathField } from './filesystem-service.ts';

/** Half of the kernel's default of instances for a user: programs of the guest's root have theirs. */
const defaultMaxWatches = 64;
/** Over all watchers that are asked: an event nobody fetches stays in memory. */
const defaultMaxPendingEvents = 65_536;
/** A watcher not asked for this long makes room when there is none. */
const abandonedMs = 60 * 60_000;

interface WatchRequest {
  entries: EntryReader;
  path: string;
  recursive: boolean;
  includeEntry: boolean;
}

interface Watcher {
  request: WatchRequest;
  watch: DirectoryWatch;
  pending: WatchEvent[];
  fault: ConnectError | undefined;
  askedAtMs: number;
}

export class WatchTable {
  readonly #maxWatches: number;
  readonly #maxPendingEvents: number;
  readonly #watchers = new Map<string, Watcher>();
  #streams = 0;
  #pendingEvents = 0;
  #lastId = 0;

  constructor(limits: { maxWatches?: number; maxPendingEvents?: number } = {}) {
    this.#maxWatches = limits.maxWatches ?? defaultMaxWatches;
    this.#maxPendingEvents = limits.maxPendingEvents ?? defaultMaxPendingEvents;
  }

  async watchDirectory(caller: Caller, message: Message, stream: ServerStream): Promise<void> {
    const request = await requestOf(caller, message);
    const watch = await this.#open(request);
    if (stream.ended) return watch.close();
    this.#streams++;
    const timer =
      stream.timeoutMs > 0 ? setTimeout(() => stream.end(overdue()), stream.timeoutMs) : undefined;
    stream.onGone = () => {
      clearTimeout(timer);
      this.#streams--;
      watch.close();
    };
    stream.send({ start: {} });
    stream.keepAliveWith({ keepalive: {} });
    tellAll(request, watch, stream);
  }

  async createWatcher(caller: Caller, message: Message): Promise<object> {
    const request = await requestOf(caller, message);
    const watch = await this.#open(request);
    const watcherId = `w${++this.#lastId}`;
    const watcher = { request, watch, pending: [], fault: undefined, askedAtMs: performance.now() };
    this.#watchers.set(watcherId, watcher);
    watch.onReadable = () => this.#collect(watcher);
    this.#collect(watcher);
    return { watcherId };
  }

  async watcherEvents(message: Message): Promise<object> {
    const watcher = this.#find(message);
    watcher.askedAtMs = performance.now();
    this.#collect(watcher);
    const events = watcher.pending;
    if (events.length === 0 && watcher.fault !== undefined) throw watcher.fault;
    watcher.pending = [];
    this.#pendingEvents -= events.length;
    const told: object[] = [];
    for (const event of events) told.push(await withEntry(watcher.request, event));
    return { events: told };
  }

  removeWatcher(message: Message): object {
    this.#remove(textField(message, 'watcherId'), this.#find(message));
    return {};
  }

  async #open(request: WatchRequest): Promise<DirectoryWatch> {
    this.#makeRoom();
    return await DirectoryWatch.open(request.path, request.recursive).catch((error) => {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') asFileError(request.path)(error);
      throw asWatchError(error);
    });
  }

  #makeRoom(): void {
    if (this.#watchers.size + this.#streams < this.#maxWatches) return;
    for (const [id, watcher] of this.#watchers)
      if (performance.now() - watcher.askedAtMs > abandonedMs) return void this.#remove(id, watcher);
    throw new ConnectError('resource_exhausted', `${this.#maxWatches} directories are being watched`);
  }

  #find(message: Message): Watcher {
    const id = textField(message, 'watcherId');
    const watcher = this.#watchers.get(id);
    if (watcher === undefined)
      throw new ConnectError('not_found', `watcher with id ${id.slice(0, 64)} not found`);
    return watcher;
  }

  #remove(id: string, watcher: Watcher): void {
    this.#watchers.delete(id);
    this.#pendingEvents -= watcher.pending.length;
    watcher.watch.close();
  }

  /** At once and not only when asked: a directory made now must be watched now. */
  #collect(watcher: Watcher): void {
    if (watcher.fault !== undefined) return;
    try {
      for (let events = watcher.watch.read(); events.length > 0; events = watcher.watch.read()) {
        this.#pendingEvents += events.length;
        watcher.pending.push(...events);
        if (this.#pendingEvents > this.#maxPendingEvents)
          throw new ConnectError(
            'resource_exhausted',
            'too many events were not fetched: later ones are lost',
          );
      }
    } catch (error) {
      watcher.fault = asWatchError(error);
      watcher.watch.close();
    }
  }
}

async function requestOf(caller: Caller, message: Message): Promise<WatchRequest> {
  const path = pathField(caller, message, 'path');
  const facts = await stat(path).catch(asFileError(path));
  if (!facts.isDirectory()) throw new ConnectError('invalid_argument', `path is not a directory: ${path}`);
  if (!flagField(message, 'allowNetworkMounts') && !(await isLocal(path).catch(asFileError(path))))
    throw new ConnectError('invalid_argument', `cannot watch a path on a network mount: ${path}`);
  const [recursive, includeEntry] = [flagField(message, 'recursive'), flagField(message, 'includeEntry')];
  return { entries: new EntryReader(caller.accounts), path, recursive, includeEntry };
}

const overdue = () => new ConnectError('deadline_exceeded', 'the watch took longer than its timeout');

/** Passes events on as they come; the kernel keeps them while the client is slow. */
function tellAll(request: WatchRequest, watch: DirectoryWatch, stream: ServerStream): void {
  let telling = false;
  const tell = async () => {
    if (telling || stream.ended) return;
    telling = true;
    try {
      for (let events = watch.read(); events.length > 0 && !stream.ended; events = watch.read())
        for (const event of events)
          if (!stream.send({ filesystem: await withEntry(request, event) })) await stream.drained();
    } catch (error) {
      stream.end(asWatchError(error));
    }
    telling = false;
  };
  watch.onReadable = () => void tell();
  void tell();
}

async function withEntry({ entries, path, includeEntry }: WatchRequest, event: WatchEvent): Promise<object> {
  if (!includeEntry || event.type === 'EVENT_TYPE_REMOVE' || event.type === 'EVENT_TYPE_RENAME') return event;
  // It may be gone by now: then the event is told alone.
  const entry = await entries.read(join(path, event.name)).catch(() => undefined);
  return entry === undefined ? event : { ...event, entry };
}
