// Owns one watched directory: the kernel's watches below it and the events in the words of the contract.
// Refuses to own who hears of them (watch-service.ts) and how the kernel is asked (inotify.ts).
// Invariant: a directory is watched before its entries are read: what is made in between is told once, never missed.
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { ConnectError } from '../../shared/connect-frames.ts';
import { Inotify, type KernelEvent, mask } from './inotify.ts';

export type EventType =
  | 'EVENT_TYPE_CREATE'
  | 'EVENT_TYPE_WRITE'
  | 'EVENT_TYPE_REMOVE'
  | 'EVENT_TYPE_RENAME'
  | 'EVENT_TYPE_CHMOD';

export interface WatchEvent {
  /** Relative to the watched directory; `.` is the directory itself. */
  name: string;
  type: EventType;
}

const maxDirectories = 32_768;
/** Directories walked before other work of the agent gets its turn. */
const directoriesPerTurn = 100;
/** Both halves of a move are queued within one system call; this is how long the second one may take. */
const moveMs = 100;

const eventTypes: [mask: number, type: EventType][] = [
  [mask.create | mask.movedTo, 'EVENT_TYPE_CREATE'],
  [mask.modify, 'EVENT_TYPE_WRITE'],
  [mask.delete | mask.deleteSelf, 'EVENT_TYPE_REMOVE'],
  [mask.movedFrom | mask.moveSelf, 'EVENT_TYPE_RENAME'],
  [mask.attributes, 'EVENT_TYPE_CHMOD'],
];

export class DirectoryWatch {
  readonly root: string;
  readonly #recursive: boolean;
  readonly #inotify = new Inotify();
  /** Watch → directory relative to the root, '' for the root itself. */
  readonly #directories = new Map<number, string>();
  /** Directories that were moved and not yet seen elsewhere in the tree. */
  readonly #movedAway = new Set<number>();
  /** The name that each move's first half told of. */
  readonly #moves = new Map<number, string>();
  /** Told of because a new directory already held them: the kernel may tell of them again. */
  readonly #announced = new Set<string>();
  #fault: ConnectError | undefined;

  private constructor(root: string, recursive: boolean) {
    this.root = root;
    this.#recursive = recursive;
  }

  /** @throws Error with the system's `code`, or ConnectError `resource_exhausted`. */
  static async open(root: string, recursive: boolean): Promise<DirectoryWatch> {
    const watch = new DirectoryWatch(root, recursive);
    try {
      watch.#add('', true);
      if (recursive) await watch.#addExisting();
      return watch;
    } catch (error) {
      watch.close();
      throw error;
    }
  }

  /** Called when `read` has something to return. */
  set onReadable(listener: () => void) {
    this.#inotify.onReadable = listener;
  }

  /**
   * What has happened since the last call, in order; empty when that is all.
   * @throws ConnectError `resource_exhausted` once events were lost or a directory could not be watched.
   */
  read(): WatchEvent[] {
    if (this.#fault !== undefined) throw this.#fault;
    const events: WatchEvent[] = [];
    try {
      for (let read = this.#inotify.read(); read.length > 0; read = this.#inotify.read()) {
        for (const event of read) this.#translate(event, events);
        if (events.length > 0) return events;
      }
    } catch (error) {
      this.#fault = asWatchError(error);
      if (events.length === 0) throw this.#fault;
    }
    this.#announced.clear();
    return events;
  }

  close(): void {
    this.#inotify.close();
  }

  #translate(event: KernelEvent, into: WatchEvent[]): void {
    if (event.mask & mask.overflow)
      throw exhausted('more happened at once than could be told: events are lost');
    const directory = this.#directories.get(event.watch);
    if (directory === undefined || this.#movedAway.has(event.watch)) return;
    if (event.mask & mask.ignored) return void this.#directories.delete(event.watch);
    const type = eventTypes.find(([bits]) => event.mask & bits)?.[1];
    if (type === undefined) return;
    // Of directories below the root their parent tells.
    if (event.name === '') return void (directory === '' && into.push({ name: '.', type }));
    const name = join(directory, event.name);
    const known = this.#announced.delete(name);
    if (type === 'EVENT_TYPE_CREATE' && known) return;
    into.push({ name, type });
    if (this.#recursive && event.mask & mask.directory) this.#follow(event, name, into);
  }

  #follow(event: KernelEvent, name: string, into: WatchEvent[]): void {
    if (event.mask & mask.create) this.#addTree(name, into);
    if (event.mask & mask.movedFrom) this.#leave(event.cookie, name);
    if (event.mask & mask.movedTo) this.#arrive(event.cookie, name, into);
  }

  #leave(cookie: number, name: string): void {
    this.#moves.set(cookie, name);
    for (const [watch, directory] of this.#directories)
      if (directory === name || directory.startsWith(`${name}/`)) this.#movedAway.add(watch);
    setTimeout(() => this.#forgetMoved(), moveMs).unref();
  }

  /** Only by the kernel's words: the directory may be elsewhere again by the time this is read. */
  #arrive(cookie: number, name: string, into: WatchEvent[]): void {
    const from = this.#moves.get(cookie);
    if (from === undefined) return void this.#addTree(name);
    let known = false;
    for (const watch of this.#movedAway) {
      const directory = this.#directories.get(watch)!;
      if (directory !== from && !directory.startsWith(`${from}/`)) continue;
      known ||= directory === from;
      this.#directories.set(watch, name + directory.slice(from.length));
      this.#movedAway.delete(watch);
    }
    // It was made and moved before it could be watched.
    if (!known) this.#addTree(name, into);
  }

  #forgetMoved(): void {
    for (const watch of this.#movedAway) {
      this.#inotify.remove(watch);
      this.#directories.delete(watch);
    }
    this.#movedAway.clear();
    this.#moves.clear();
  }

  #add(name: string, followLink = false): void {
    if (this.#directories.size >= maxDirectories)
      throw exhausted(`a watch may have ${maxDirectories} directories`);
    const watch = this.#inotify.add(join(this.root, name), followLink);
    this.#directories.set(watch, name);
    this.#movedAway.delete(watch);
  }

  async #addExisting(): Promise<void> {
    const pending = [''];
    for (let count = 1; pending.length > 0; count++) {
      const directory = pending.pop()!;
      if (directory === '' || this.#addIfThere(directory)) pending.push(...this.#subdirectories(directory));
      if (count % directoriesPerTurn === 0) await turn();
    }
  }

  /** @param into tells of what is found there: absent when it came with a move and is not new. */
  #addTree(name: string, into?: WatchEvent[]): void {
    if (!this.#addIfThere(name)) return;
    for (const entry of entriesOf(join(this.root, name))) {
      const path = join(name, entry.name);
      if (into !== undefined) this.#announce(path, entry.isFile(), into);
      if (entry.isDirectory()) this.#addTree(path, into);
    }
  }

  #announce(name: string, isFile: boolean, into: WatchEvent[]): void {
    this.#announced.add(name);
    into.push({ name, type: 'EVENT_TYPE_CREATE' });
    const facts = isFile ? statSync(join(this.root, name), { throwIfNoEntry: false }) : undefined;
    if (facts !== undefined && facts.size > 0) into.push({ name, type: 'EVENT_TYPE_WRITE' });
  }

  /** @returns false when the directory is already gone, or not for the agent to see. */
  #addIfThere(name: string): boolean {
    try {
      this.#add(name);
      return true;
    } catch (error) {
      if (isGone(error)) return false;
      throw error;
    }
  }

  #subdirectories(name: string): string[] {
    const entries = entriesOf(join(this.root, name)).filter((entry) => entry.isDirectory());
    return entries.map((entry) => join(name, entry.name));
  }
}

function entriesOf(path: string) {
  try {
    return readdirSync(path, { withFileTypes: true });
  } catch (error) {
    if (isGone(error)) return [];
    throw error;
  }
}

const isGone = (error: unknown) =>
  ['ENOENT', 'ENOTDIR', 'EACCES'].includes((error as NodeJS.ErrnoException).code ?? '');

const exhausted = (message: string) => new ConnectError('resource_exhausted', message);

export function asWatchError(error: unknown): ConnectError {
  if (error instanceof ConnectError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'EMFILE' || code === 'ENFILE') return exhausted('no more directories can be watched at once');
  if (code === 'ENOSPC' || code === 'ENOMEM')
    return exhausted('the guest has no more watches for directories');
  return new ConnectError('internal', `cannot watch: ${code ?? message}`);
}
