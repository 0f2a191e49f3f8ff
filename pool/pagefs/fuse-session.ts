// Owns the conversation on /dev/fuse: requests in, replies and notices out, until the mount is gone.
// Refuses to own what files there are (file-tree.ts) and the mount (fuse-mount.ts).
// Invariant: every request that wants a reply gets exactly one; a handler's failure is EIO, never silence.
import { read, writev, writevSync } from 'node:fs';
import { promisify } from 'node:util';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import {
  decodeRequest,
  type Errno,
  encodeError,
  encodeReply,
  type FuseRequest,
  type InitLimits,
  initReply,
  requestBufferBytes,
} from './fuse-protocol.ts';

const readAsync = promisify(read);
const writevAsync = promisify(writev);

/** The pieces of a reply's body, or why there is none. */
export type FuseAnswer = readonly Buffer[] | Errno;

/** Everything but the life of the connection. */
export type FuseOperation = Exclude<FuseRequest, { op: 'init' | 'interrupt' | 'destroy' | 'forget' }>;

export interface FuseHandler {
  /** A rejection is answered with EIO. */
  handle(operation: FuseOperation): FuseAnswer | Promise<FuseAnswer>;
  forget(nodeId: number, lookups: number): void;
}

export interface FuseSessionOptions {
  fd: number;
  handler: FuseHandler;
  limits: InitLimits;
  log: Log;
  /** Reads of the device that wait side by side; each holds one thread of libuv's pool for good. */
  readers: number;
}

export class FuseSession {
  /** Settles when the mount is gone, with how it went. */
  readonly ended: Promise<'unmounted' | 'aborted'>;
  /** Settles when the kernel has accepted our INIT reply. */
  readonly ready: Promise<void>;
  readonly #options: FuseSessionOptions;
  readonly #markReady: (refusal?: Error) => void;
  #gone: 'unmounted' | 'aborted' | undefined;

  constructor(options: FuseSessionOptions) {
    this.#options = options;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.ready = promise;
    this.ready.catch(() => {});
    this.#markReady = (refusal) => (refusal ? reject(refusal) : resolve());
    const readers = Array.from({ length: options.readers }, () => this.#readLoop());
    this.ended = Promise.all(readers).then(() => {
      reject(new ThawError('mount-failed', 'the page file system was unmounted'));
      return this.#gone ?? 'unmounted';
    });
  }

  /** Sends a notice. It may wait for locks of the kernel, so it never runs on the thread that answers. */
  async notify(pieces: readonly Buffer[]): Promise<void> {
    if (this.#gone) throw new ThawError('mount-failed', 'the page file system is gone');
    await writevAsync(this.#options.fd, [...pieces]);
  }

  async #readLoop(): Promise<void> {
    const buffer = Buffer.allocUnsafeSlow(requestBufferBytes);
    while (!this.#gone) {
      try {
        const { bytesRead } = await readAsync(this.#options.fd, buffer, 0, buffer.length, null);
        this.#dispatch(decodeRequest(buffer, bytesRead));
      } catch (error) {
        this.#readFailed(error as NodeJS.ErrnoException);
      }
    }
  }

  #readFailed(error: NodeJS.ErrnoException): void {
    // A request that was taken back between its announcement and our read.
    if (error.code === 'ENOENT' || error.code === 'EINTR' || error.code === 'EAGAIN') return;
    if (error.code !== 'ENODEV' && error.code !== 'ECONNABORTED')
      this.#options.log.error({ err: error }, 'reading /dev/fuse failed');
    this.#gone ??= error.code === 'ENODEV' ? 'unmounted' : 'aborted';
  }

  #dispatch(request: FuseRequest): void {
    switch (request.op) {
      case 'init':
        this.#init(request);
        break;
      case 'forget':
        for (const { nodeId, lookups } of request.forgotten) this.#options.handler.forget(nodeId, lookups);
        break;
      case 'interrupt':
        // Never carried out: EINTR for the page of a fault is a SIGBUS for a VMM that merely got a signal. ENOSYS
        // makes the kernel stop asking.
        this.#reply(encodeError(request.unique, 'ENOSYS'));
        break;
      case 'destroy':
        this.#reply(encodeReply(request.unique));
        break;
      default:
        this.#operate(request);
    }
  }

  #init(request: Extract<FuseRequest, { op: 'init' }>): void {
    const body = initReply(request, this.#options.limits);
    this.#reply(body ? encodeReply(request.unique, [body]) : encodeError(request.unique, 'EIO'));
    this.#markReady(
      body
        ? undefined
        : new ThawError('mount-failed', `this kernel speaks FUSE ${request.major}.${request.minor}`),
    );
  }

  #operate(request: FuseOperation): void {
    try {
      const answer = this.#options.handler.handle(request);
      if (answer instanceof Promise) {
        answer.then(
          (settled) => this.#answer(request, settled),
          (error) => this.#failed(request, error),
        );
      } else {
        this.#answer(request, answer);
      }
    } catch (error) {
      this.#failed(request, error);
    }
  }

  #failed(request: FuseOperation, error: unknown): void {
    this.#options.log.warn(
      { err: error, op: request.op, nodeId: request.nodeId },
      'page file request failed',
    );
    this.#answer(request, 'EIO');
  }

  #answer(request: FuseOperation, answer: FuseAnswer): void {
    this.#reply(
      typeof answer === 'string' ? encodeError(request.unique, answer) : encodeReply(request.unique, answer),
    );
  }

  /** On this thread: the copy into the kernel costs less than a trip to libuv's pool and back. */
  #reply(pieces: Buffer[]): void {
    try {
      writevSync(this.#options.fd, pieces);
    } catch (error) {
      // ENOENT: the asker has died. ENODEV: the mount is gone; the readers will say so.
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' && code !== 'ENODEV')
        this.#options.log.error({ err: error }, 'replying on /dev/fuse failed');
    }
  }
}
