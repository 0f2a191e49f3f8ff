// Owns the pager's control socket: requests in, replies and events out, for however many nodes come and go.
// Refuses to own the operations (pager.ts). Invariant: the socket is its owner's alone; a client that goes away ends
// nothing; a pager that nobody has spoken to for long and nobody uses ends itself.
import { chmod, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { registry } from '../../shared/metrics.ts';
import { flatRuns, runsOfFlat } from '../snapshot/working-set.ts';
import { jsonLine, onJsonLines } from './json-lines.ts';
import type { Pager } from './pager.ts';
import {
  maxLineBytes,
  type PagerEvent,
  type PagerOperation,
  type PagerOperations,
  type PagerRequest,
} from './pager-protocol.ts';

type Handlers = {
  [O in PagerOperation]: (
    request: PagerOperations[O]['request'],
  ) => PagerOperations[O]['reply'] | Promise<PagerOperations[O]['reply']>;
};

export interface PagerServerOptions {
  socketPath: string;
  mountDir: string;
  pager: Pager;
  log: Log;
  /** Without a client and without an open file for so long, the pager's node is not coming back. */
  orphanTimeoutMs: number;
  /** Called once: `stop` was asked for, or the pager is an orphan. */
  onEnd: (reason: string) => void;
}

export class PagerServer {
  readonly #options: PagerServerOptions;
  readonly #handlers: Handlers;
  readonly #clients = new Set<Socket>();
  readonly #server: Server;
  #orphanTimer: NodeJS.Timeout | undefined;

  constructor(options: PagerServerOptions) {
    this.#options = options;
    this.#handlers = handlersOf(options);
    this.#server = createServer((socket) => this.#accept(socket));
  }

  async listen(): Promise<void> {
    const { socketPath } = this.#options;
    await rm(socketPath, { force: true });
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(socketPath, resolve);
    });
    await chmod(socketPath, 0o600);
    this.#armOrphanTimer();
  }

  broadcast(event: PagerEvent): void {
    for (const client of this.#clients) client.write(jsonLine(event));
  }

  async close(): Promise<void> {
    clearTimeout(this.#orphanTimer);
    const closed = new Promise((resolve) => this.#server.close(resolve));
    for (const client of this.#clients) client.destroy();
    await closed;
  }

  #accept(socket: Socket): void {
    clearTimeout(this.#orphanTimer);
    this.#clients.add(socket);
    socket.on('error', (error) => this.#options.log.warn({ err: error }, 'control connection failed'));
    socket.on('close', () => {
      this.#clients.delete(socket);
      this.#armOrphanTimer();
    });
    onJsonLines(socket, maxLineBytes, (value) => void this.#serve(socket, value as PagerRequest));
  }

  async #serve(socket: Socket, request: PagerRequest): Promise<void> {
    const { id, op } = request;
    try {
      if (!Object.hasOwn(this.#handlers, op)) throw new ThawError('bad-request', `no operation ${op}`);
      // The handler knows its own request; the peer is our own node.
      const ok = await this.#handlers[op](request as never);
      socket.write(jsonLine({ id, ok }));
    } catch (error) {
      const code = error instanceof ThawError ? error.code : 'internal';
      if (code === 'internal') this.#options.log.error({ err: error, op }, 'pager operation failed');
      socket.write(jsonLine({ id, error: { code, detail: (error as Error).message } }));
    }
  }

  #armOrphanTimer(): void {
    if (this.#clients.size > 0) return;
    clearTimeout(this.#orphanTimer);
    this.#orphanTimer = setTimeout(() => {
      if (this.#options.pager.opens > 0) this.#armOrphanTimer();
      else this.#options.onEnd('no node has spoken to it for long, and no VM uses it');
    }, this.#options.orphanTimeoutMs);
  }
}

function handlersOf({ pager, mountDir, onEnd }: PagerServerOptions): Handlers {
  return {
    hello: () => ({ pid: process.pid, mountDir }),
    add: ({ from, record, ...ref }) => pager.add(refOf(ref), from, record),
    remove: async (ref) => {
      await pager.remove(refOf(ref));
      return {};
    },
    prefetch: ({ pages, ...ref }) => pager.prefetch(refOf(ref), runsOfFlat(pages)),
    complete: (ref) => ({ missingFrames: pager.complete(refOf(ref)) }),
    recording: (ref) => ({ pages: flatRuns(pager.recording(refOf(ref))) }),
    stats: () => pager.stats(),
    metrics: async () => ({ series: await registry.getMetricsAsJSON() }),
    stop: () => {
      if (pager.opens > 0) throw new ThawError('conflict', `${pager.opens} page files are open`);
      // After the reply has gone out.
      setImmediate(onEnd, 'it was asked to');
      return {};
    },
  };
}

const refOf = ({ snapshotId, image }: PagerOperations['remove']['request']) => ({ snapshotId, image });
