// Owns the listening to changes below one directory, from `start` to `stop`.
// Refuses to own which changes there are. Invariant: after `stop` resolves no event is passed on any more.
import { type EntryInfo, entryInfoOf, type WireEntry } from './entry-info.ts';
import { ThawError } from './errors.ts';
import type { EventStream, SandboxLink, StreamOptions } from './sandbox-link.ts';

export interface FilesystemEvent {
  type: 'create' | 'write' | 'remove' | 'rename' | 'chmod';
  /** Relative to the watched directory. */
  name: string;
  /** The entry as it was found; only with `includeEntry`, and not for one that is gone. */
  entry: EntryInfo | undefined;
}

export interface WatchOptions extends StreamOptions {
  /** Watch directories below, too. Default: false. */
  recursive?: boolean | undefined;
  /** Send the entry's information with each event. Default: false. */
  includeEntry?: boolean | undefined;
}

export type EventListener = (event: FilesystemEvent) => void | Promise<void>;

interface WireEvent {
  start?: object;
  filesystem?: { type?: string; name?: string; entry?: WireEntry };
}

export class WatchHandle {
  readonly #stream: EventStream<WireEvent>;
  readonly #done: Promise<void>;

  private constructor(stream: EventStream<WireEvent>, listener: EventListener) {
    this.#stream = stream;
    this.#done = this.#pump(listener);
    this.#done.catch(() => {});
  }

  /** @internal */
  static async open(
    link: SandboxLink,
    path: string,
    listener: EventListener,
    options: WatchOptions,
  ): Promise<WatchHandle> {
    const { recursive = false, includeEntry = false } = options;
    const message = { path, recursive, includeEntry };
    const stream = await link.stream<WireEvent>('filesystem.Filesystem/WatchDir', message, options);
    const { value, done } = await stream.events.next();
    if (!done && value.start !== undefined) return new WatchHandle(stream, listener);
    stream.close();
    throw new ThawError('the first event was not the start of the watch', { code: 'internal' });
  }

  /**
   * Waits until the watching ends by itself.
   * @throws {@link DeadlineExceededError} after its `timeoutMs`, {@link NotFoundError} when the sandbox ended, and what the
   * listener threw.
   */
  wait(): Promise<void> {
    return this.#done;
  }

  /** Ends the watching. Never rejects: `wait` says whether it had failed before. */
  async stop(): Promise<void> {
    this.#stream.close();
    await this.#done.catch(() => {});
  }

  async #pump(listener: EventListener): Promise<void> {
    try {
      for await (const { filesystem } of this.#stream.events)
        if (filesystem !== undefined) await listener(eventOf(filesystem));
    } finally {
      this.#stream.close();
    }
  }
}

function eventOf({ type = '', name = '', entry }: NonNullable<WireEvent['filesystem']>): FilesystemEvent {
  return {
    type: type.replace('EVENT_TYPE_', '').toLowerCase() as FilesystemEvent['type'],
    name,
    entry: entry === undefined ? undefined : entryInfoOf(entry),
  };
}
