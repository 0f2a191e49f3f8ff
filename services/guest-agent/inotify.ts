// Owns the kernel's inotify: an instance per watch, woken by a signal, read without blocking.
// Refuses to own what events mean for a tree (directory-watch.ts). docs/decisions/0007 says why not fs.watch.
// Invariant: the signal's handler is there before the first instance and for good: one that is still on its way when
// the last instance closes would end the agent.
import { closeSync, readSync } from 'node:fs';
import { checked, closeOnExec } from './kernel-calls.ts';
import { foreign } from './native-library.ts';

export const mask = {
  modify: 0x2,
  attributes: 0x4,
  movedFrom: 0x40,
  movedTo: 0x80,
  create: 0x100,
  delete: 0x200,
  deleteSelf: 0x400,
  moveSelf: 0x800,
  overflow: 0x4000,
  ignored: 0x8000,
  onlyDirectory: 0x0100_0000,
  dontFollow: 0x0200_0000,
  directory: 0x4000_0000,
} as const;

/** All that happens to entries of a directory, and to itself. */
const watched =
  mask.modify |
  mask.attributes |
  mask.movedFrom |
  mask.movedTo |
  mask.create |
  mask.delete |
  mask.deleteSelf |
  mask.moveSelf |
  mask.onlyDirectory;

export interface KernelEvent {
  /** Which watch it belongs to; -1 for an overflow. */
  watch: number;
  mask: number;
  /** The same for both halves of a move. */
  cookie: number;
  /** Of the entry inside the directory, '' for the directory itself. */
  name: string;
}

const nonBlocking = 0o4000;
const asynchronous = 0o20000;
const setOwner = 8;
const setFlags = 4;
const headerBytes = 16;
const bufferBytes = 16 * 1024;

let listening = false;
const open = new Set<Inotify>();
const wakeAll = () => {
  for (const instance of open) instance.onReadable();
};

export class Inotify {
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafeSlow(bufferBytes);
  /** There is something to `read`. */
  onReadable: () => void = () => {};

  /** @throws Error with `code` EMFILE when the guest has no more instances. */
  constructor() {
    const fcntl = foreign('fcntl', 'int', ['int', 'int', 'long']);
    const init = foreign('inotify_init1', 'int', ['int']);
    this.#fd = checked('inotify_init1', init(closeOnExec | nonBlocking));
    if (!listening) process.on('SIGIO', wakeAll);
    listening = true;
    open.add(this);
    try {
      checked('F_SETOWN', fcntl(this.#fd, setOwner, process.pid));
      checked('F_SETFL', fcntl(this.#fd, setFlags, nonBlocking | asynchronous));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * @returns the directory's watch: one that is already watched keeps its number.
   * @throws Error with `code` ENOENT, ENOTDIR, or ENOSPC when the guest has no more watches.
   */
  add(path: string, followLink: boolean): number {
    const call = foreign('inotify_add_watch', 'int', ['int', 'str', 'uint32_t']);
    return checked(
      'inotify_add_watch',
      call(this.#fd, path, followLink ? watched : watched | mask.dontFollow),
    );
  }

  remove(watch: number): void {
    // The number of a closed file may be another's by now. A watch whose directory is gone is already removed.
    if (open.has(this)) foreign('inotify_rm_watch', 'int', ['int', 'int'])(this.#fd, watch);
  }

  /** What has happened since the last call, at most a buffer's worth; empty when that is all. */
  read(): KernelEvent[] {
    if (!open.has(this)) return [];
    try {
      return parseEvents(this.#buffer.subarray(0, readSync(this.#fd, this.#buffer)));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return [];
      throw error;
    }
  }

  close(): void {
    if (open.delete(this)) closeSync(this.#fd);
  }
}

export function parseEvents(buffer: Buffer): KernelEvent[] {
  const events: KernelEvent[] = [];
  for (let at = 0; at + headerBytes <= buffer.length; ) {
    const nameAt = at + headerBytes;
    const nextAt = nameAt + buffer.readUInt32LE(at + 12);
    // The name is padded with NULs.
    const padded = buffer.subarray(nameAt, nextAt);
    const nameBytes = padded.indexOf(0);
    events.push({
      watch: buffer.readInt32LE(at),
      mask: buffer.readUInt32LE(at + 4),
      cookie: buffer.readUInt32LE(at + 8),
      name: padded.toString('utf8', 0, nameBytes < 0 ? padded.length : nameBytes),
    });
    at = nextAt;
  }
  return events;
}
