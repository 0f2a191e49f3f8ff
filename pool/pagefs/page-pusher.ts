// Owns putting pages into the kernel's page cache unasked, on a thread of its own: thousands of small notices, of which
// each may wait for the lock of a page that somebody is being served.
// Refuses to own which pages (page-source.ts). Invariant: the thread that answers faults does nothing for it but hand
// over bytes; a page that the kernel does not want is left for the guest to ask for.
import { Worker } from 'node:worker_threads';
import type { Place } from './image-places.ts';
import type { PushReply, PushRequest } from './page-pusher-worker.ts';

interface Pending {
  resolve(): void;
  reject(error: Error): void;
}

export class PagePusher {
  readonly #worker: Worker;
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #ended: Error | undefined;

  /** @param fd of the FUSE device; stays open until `close` has resolved. */
  constructor(fd: number) {
    this.#worker = new Worker(new URL('./page-pusher-worker.ts', import.meta.url), {
      name: 'page pusher',
      workerData: fd,
    });
    this.#worker.unref();
    this.#worker.on('message', (reply: PushReply) => this.#settle(reply));
    this.#worker.on('error', (error) => this.#end(error as Error));
    this.#worker.on('exit', () => this.#end(new Error('the pushing thread ended')));
  }

  /** @throws Error when the file system is gone. */
  push(nodeId: number, places: readonly Place[]): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#ended) return reject(this.#ended);
      const id = this.#nextId++;
      this.#pending.set(id, { resolve, reject });
      const request = requestOf(id, nodeId, places);
      this.#worker.postMessage(request, [request.bytes.buffer]);
    });
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }

  #settle({ id, error }: PushReply): void {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    if (error === undefined) pending?.resolve();
    else pending?.reject(new Error(error));
  }

  #end(error: Error): void {
    this.#ended ??= error;
    for (const { reject } of this.#pending.values()) reject(this.#ended);
    this.#pending.clear();
  }
}

/** With the bytes in memory of its own, which is handed over and not copied once more. */
function requestOf(id: number, nodeId: number, places: readonly Place[]): PushRequest {
  const sizesBytes = Float64Array.from(places, ({ bytes }) => bytes.length);
  const offsetsBytes = Float64Array.from(places, ({ offsetBytes }) => offsetBytes);
  const all = new Uint8Array(sizesBytes.reduce((sum, sizeBytes) => sum + sizeBytes, 0));
  let at = 0;
  for (const { bytes } of places) {
    all.set(bytes, at);
    at += bytes.length;
  }
  return { id, nodeId, bytes: all, offsetsBytes, sizesBytes };
}
