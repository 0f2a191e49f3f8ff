// Owns one node's conversation with its pager: requests with deadlines, events, and noticing at once that it is gone.
// Refuses to own the process (pager-process.ts) and which VMs die with it (the pool, told by `lost`).
// Invariant: a pager that is dead, or does not answer, is reported once, after it was made sure that it serves nothing.
import { stat } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { flatRuns, type Recording, runsOfFlat, type TouchedRun } from '../snapshot/working-set.ts';
import { jsonLine, onJsonLines } from './json-lines.ts';
import {
  type ImageRef,
  maxLineBytes,
  type PagerEvent,
  type PagerMessage,
  type PagerOperation,
  type PagerOperations,
  type PagerReply,
  type PagerStats,
  type ServeFrom,
} from './pager-protocol.ts';

export interface PagerLoss {
  code: 'pager-lost';
  detail: string;
}

export interface PagerClientOptions {
  log: Log;
  /** Ends the process for sure; what it served then fails instead of hanging. */
  kill: () => Promise<void>;
  /** How often it is asked whether it lives, and how long it may take to say so. */
  healthEveryMs?: number;
  healthTimeoutMs?: number;
}

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

const connectTimeoutMs = 2_000;
const requestTimeoutMs = 10_000;
/** A whole working set from a slow store. */
const prefetchTimeoutMs = 120_000;

/** @throws Error when nobody listens. */
export async function connectPager(socketPath: string, options: PagerClientOptions): Promise<PagerClient> {
  const socket = connect(socketPath);
  const connected = new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', reject);
  });
  try {
    await withDeadline('the pager’s socket', connectTimeoutMs, connected);
    const client = new PagerClient(socket, options);
    await client.hello();
    return client;
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

export class PagerClient {
  /** Settles when the pager is gone though nobody closed it: every VM that maps one of its files must be ended. */
  readonly lost: Promise<PagerLoss>;
  readonly #socket: Socket;
  readonly #options: PagerClientOptions;
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Set<(event: PagerEvent) => void>();
  readonly #reportLoss: (loss: PagerLoss) => void;
  #healthTimer: NodeJS.Timeout | undefined;
  #nextId = 1;
  #closed = false;

  constructor(socket: Socket, options: PagerClientOptions) {
    this.#socket = socket;
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<PagerLoss>();
    this.lost = promise;
    this.#reportLoss = resolve;
    onJsonLines(socket, maxLineBytes, (value) => this.#receive(value as PagerMessage));
    socket.on('error', (error) => options.log.warn({ err: error }, 'the connection to the pager failed'));
    socket.once('close', () => void this.#onClose('its connection closed'));
    this.#watchHealth();
  }

  hello(): Promise<PagerOperations['hello']['reply']> {
    return this.#request('hello', {});
  }

  /** @returns the path of the page file for the VMM. @throws ThawError `conflict` | `snapshot-damaged` | `no-space`. */
  async add(ref: ImageRef, from: ServeFrom, options: { record?: boolean } = {}): Promise<string> {
    const { path } = await this.#request('add', { ...ref, from, record: options.record === true });
    // The kernel takes pages ahead of need only for a file that it has looked up.
    await withDeadline(`looking up ${path}`, requestTimeoutMs, stat(path));
    return path;
  }

  /** @throws ThawError `conflict` while a VMM has it mapped. */
  async remove(ref: ImageRef): Promise<void> {
    await this.#request('remove', { ...ref });
  }

  /** Resolves when the pages are here; a restore need not wait for it. */
  prefetch(ref: ImageRef, runs: readonly TouchedRun[]): Promise<{ frames: number; failed: number }> {
    return this.#request('prefetch', { ...ref, pages: flatRuns(runs) }, prefetchTimeoutMs);
  }

  /** Everything else, in the background; the event `kept` tells when the plain file is whole. */
  complete(ref: ImageRef): Promise<{ missingFrames: number }> {
    return this.#request('complete', { ...ref });
  }

  async recording(ref: ImageRef): Promise<Recording> {
    return runsOfFlat((await this.#request('recording', { ...ref })).pages);
  }

  stats(): Promise<PagerStats> {
    return this.#request('stats', {});
  }

  /** For prom-client's `AggregatorRegistry.aggregate`, together with the node's own. */
  async metrics(): Promise<unknown[]> {
    return (await this.#request('metrics', {})).series;
  }

  /** @returns what ends the listening. */
  onEvent(listener: (event: PagerEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Unmounts and ends the pager; resolves when it is gone. @throws ThawError `conflict` while page files are mapped. */
  async stop(): Promise<void> {
    const closed = new Promise((resolve) => this.#socket.once('close', resolve));
    this.#closed = true;
    try {
      await this.#request('stop', {});
      await withDeadline('the end of the pager', requestTimeoutMs, closed);
    } catch (error) {
      this.#closed = false;
      throw error;
    }
    this.close();
  }

  /** Leaves the pager running, for a later node to adopt. */
  close(): void {
    this.#closed = true;
    clearTimeout(this.#healthTimer);
    this.#socket.destroy();
  }

  #request<O extends PagerOperation>(
    op: O,
    request: PagerOperations[O]['request'],
    timeoutMs = requestTimeoutMs,
  ): Promise<PagerOperations[O]['reply']> {
    const id = this.#nextId++;
    const reply = new Promise<PagerOperations[O]['reply']>((resolve, reject) => {
      if (this.#socket.destroyed) reject(goneError('it is gone'));
      this.#pending.set(id, { resolve: resolve as (value: unknown) => void, reject });
    });
    this.#socket.write(jsonLine({ id, op, ...request }));
    return withDeadline(`the pager’s ${op}`, timeoutMs, reply).finally(() => this.#pending.delete(id));
  }

  #receive(message: PagerMessage): void {
    if ('event' in message) for (const listener of this.#listeners) listener(message);
    else this.#settle(message);
  }

  #settle(reply: PagerReply): void {
    const pending = this.#pending.get(reply.id);
    if ('error' in reply) pending?.reject(new ThawError(reply.error.code, reply.error.detail));
    else pending?.resolve(reply.ok);
  }

  #watchHealth(): void {
    const { healthEveryMs = 1_000, healthTimeoutMs = 3_000 } = this.#options;
    this.#healthTimer = setTimeout(async () => {
      try {
        await this.#request('hello', {}, healthTimeoutMs);
        if (!this.#closed) this.#watchHealth();
      } catch (error) {
        await this.#onClose(`it does not answer: ${(error as Error).message}`);
      }
    }, healthEveryMs).unref();
  }

  async #onClose(reason: string): Promise<void> {
    for (const { reject } of this.#pending.values()) reject(goneError(reason));
    if (this.#closed) return;
    this.close();
    // A process that lost only its socket would keep VMs waiting for pages that nobody can command any more.
    await this.#options.kill().catch((error) => this.#options.log.error({ err: error }, 'pager not ended'));
    this.#options.log.error({ reason }, 'the pager is lost');
    this.#reportLoss({ code: 'pager-lost', detail: `the pager is lost: ${reason}` });
  }
}

const goneError = (reason: string) => new ThawError('pager-lost', `the pager: ${reason}`);
