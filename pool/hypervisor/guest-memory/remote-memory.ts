// Owns reading many places of another process's memory in few calls: process_vm_readv copies once and looks each page up
// in batches, where a read of /proc/PID/mem copies twice and page by page.
// Refuses to own which places. Invariant: all bytes or an error; koffi is loaded at the first read, not for those who never do.
import { createRequire } from 'node:module';

type Foreign = (...args: unknown[]) => number | bigint;
interface Libc {
  /** By a copy of nothing: what it returns is where its first argument is. */
  addressOf: Foreign;
  readv: Foreign;
  errno(): number;
}

/** The kernel's limit of places a call. */
const maxPlaces = 1024;
/** Address and size, 8 bytes each. */
const placeWords = 4;
/** A call that holds the lock of the memory too long keeps the other thread from it. */
const maxCallBytes = 8 * 1024 * 1024;
const wordSize = 2 ** 32;
/** EPERM, ENOSYS: not here, whoever is asked. */
const notAllowed = new Set([1, 38]);

let libc: Libc | undefined;

function load(): Libc {
  if (libc) return libc;
  const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi').default;
  const library = koffi.load(null);
  libc = {
    addressOf: library.func('uint64_t memcpy(void *to, void *from, size_t bytes)'),
    readv: library.func(
      'int64_t process_vm_readv(int pid, void *local, unsigned long locals, void *remote, unsigned long remotes, unsigned long flags)',
    ),
    errno: () => koffi.errno(),
  };
  return libc;
}

export class RemoteReader {
  readonly #pid: number;
  readonly #into: Uint8Array;
  readonly #places = new Uint32Array(maxPlaces * placeWords);
  readonly #local = new Uint32Array(placeWords);
  #count = 0;
  #at: number;
  #pendingBytes = 0;

  /** @param at where in `into` the first place's bytes go; those of the others follow. */
  constructor(pid: number, into: Uint8Array, at: number) {
    this.#pid = pid;
    this.#into = into;
    this.#at = at;
  }

  /** @throws Error when the process does not let itself be read any more, with `notAllowed` when it never did. */
  add(address: number, sizeBytes: number): void {
    for (let done = 0; done < sizeBytes; ) {
      const stepBytes = Math.min(sizeBytes - done, maxCallBytes - this.#pendingBytes);
      writePlace(this.#places, this.#count, address + done, stepBytes);
      this.#count += 1;
      this.#pendingBytes += stepBytes;
      done += stepBytes;
      if (this.#count === maxPlaces || this.#pendingBytes === maxCallBytes) this.flush();
    }
  }

  flush(): void {
    if (this.#count === 0) return;
    const { addressOf, readv, errno } = load();
    const base = Number(addressOf(this.#into, this.#into, 0));
    writePlace(this.#local, 0, base + this.#at, this.#pendingBytes);
    const readBytes = Number(readv(this.#pid, this.#local, 1, this.#places, this.#count, 0));
    if (readBytes !== this.#pendingBytes) {
      const code = readBytes < 0 ? errno() : 0;
      throw Object.assign(new Error(`the process cannot be read (errno ${code}): it has ended`), {
        notAllowed: notAllowed.has(code),
      });
    }
    this.#at += readBytes;
    this.#count = 0;
    this.#pendingBytes = 0;
  }
}

function writePlace(places: Uint32Array, index: number, address: number, sizeBytes: number): void {
  const at = index * placeWords;
  places[at] = address % wordSize;
  places[at + 1] = Math.floor(address / wordSize);
  places[at + 2] = sizeBytes;
  places[at + 3] = 0;
}
