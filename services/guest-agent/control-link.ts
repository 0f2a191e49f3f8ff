// Owns how control bytes travel: a virtio-serial device or a vsock connection in a guest, a unix socket in process mode.
// Refuses to own their meaning (control-channel.ts).
// Invariant: one read waits in the kernel while a host is connected; nothing polls then.
import { close, open, read, write } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { StringDecoder } from 'node:string_decoder';
import { setTimeout as delay } from 'node:timers/promises';
import type { ControlSink } from './control-channel.ts';
import { connectVsock } from './kernel-calls.ts';

/** While no host is connected a read of the device returns at once with nothing, and a vsock refuses. */
const hostAbsentRetryMs = 50;
const readBytes = 64 * 1024;

export type Connect = (sink: ControlSink) => (text: string) => void;

/** Opens the device and serves it for the agent's whole life. */
export function serveDevice(path: string, connect: Connect): Promise<void> {
  return new Promise((resolve, reject) => {
    open(path, 'r+', (error, fd) => {
      if (error) return reject(error);
      readForever(fd, connect(new DeviceSink(fd)));
      resolve();
    });
  });
}

/**
 * Calls the host's `port` and, whenever the connection ends, calls again: a clone inherits its template's connection,
 * which its own hypervisor resets as soon as it runs. Calling from inside needs no listener and no first word.
 */
export async function serveVsock(port: number, connect: Connect): Promise<never> {
  for (;;) {
    const fd = await connectVsock(port).catch(() => undefined);
    if (fd === undefined) await delay(hostAbsentRetryMs);
    else await serveConnection(fd, connect);
  }
}

async function serveConnection(fd: number, connect: Connect): Promise<void> {
  const sink = new DeviceSink(fd);
  const receive = connect(sink);
  await new Promise<void>((resolve) => readUntilEnd(fd, receive, resolve));
  // A number that is closed while a write waits in the kernel could be another file by then.
  await sink.ended();
  close(fd);
}

const readForever = (fd: number, receive: (text: string) => void): void =>
  readUntilEnd(fd, receive, () => setTimeout(readForever, hostAbsentRetryMs, fd, receive));

function readUntilEnd(fd: number, receive: (text: string) => void, onEnd: () => void): void {
  const buffer = Buffer.allocUnsafeSlow(readBytes);
  const decoder = new StringDecoder('utf8');
  const next = () =>
    read(fd, buffer, 0, buffer.length, null, (error, sizeBytes) => {
      if (error || sizeBytes === 0) return onEnd();
      receive(decoder.write(buffer.subarray(0, sizeBytes)));
      next();
    });
  next();
}

/** Writes in order, one call at a time: the kernel blocks the call while the host takes nothing. */
class DeviceSink implements ControlSink {
  readonly #fd: number;
  readonly #queue: Buffer[] = [];
  #writing = false;
  #onIdle: (() => void) | undefined;
  pendingBytes = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  write(text: string): void {
    if (this.#onIdle) return;
    const bytes = Buffer.from(text);
    this.pendingBytes += bytes.length;
    this.#queue.push(bytes);
    if (!this.#writing) this.#writeNext();
  }

  #writeNext(): void {
    const bytes = this.#queue[0];
    this.#writing = bytes !== undefined;
    if (bytes === undefined) {
      this.#onIdle?.();
      return;
    }
    write(this.#fd, bytes, 0, bytes.length, null, (error, writtenBytes) => {
      const doneBytes = error ? bytes.length : writtenBytes;
      this.pendingBytes -= doneBytes;
      if (doneBytes < bytes.length) this.#queue[0] = bytes.subarray(doneBytes);
      else this.#queue.shift();
      this.#writeNext();
    });
  }

  /** Takes no more; resolves when no call of this sink is in the kernel. */
  ended(): Promise<void> {
    return new Promise((resolve) => {
      this.#onIdle = resolve;
      this.#queue.length = Math.min(this.#queue.length, 1);
      if (!this.#writing) resolve();
    });
  }
}

/** Listens on a unix socket; every connection has its own requests, the newest gets the events. */
export function serveSocket(path: string, connect: Connect): Promise<() => void> {
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    socket.setEncoding('utf8');
    const receive = connect({
      write: (text) => void (socket.writable && socket.write(text)),
      get pendingBytes() {
        return socket.writable ? socket.writableLength : Number.POSITIVE_INFINITY;
      },
    });
    socket.on('data', (text) => receive(text as unknown as string));
    socket.on('error', () => {});
    socket.on('close', () => open.delete(socket));
  });
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () =>
      resolve(() => {
        server.close();
        for (const socket of open) socket.destroy();
      }),
    );
  });
}
