// Owns the copying threads: a capture or a restore leases a crew of them, divides its work among them, gives it back.
// Refuses to own what a page is (page-capture.ts, delta-paste.ts).
// Invariant: one lease at a time uses a crew; a crew that failed, grew large or still holds bytes is ended, not kept.
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { ThawError } from '../../../shared/errors.ts';
import type { CopierReply, CopierRequest, CopierWork } from './copier.ts';
import { bytesOf, shareRuns } from './dirty-runs.ts';

/** More threads than this contend for the lock of the memory they read. */
const copiersPerCrew = Math.min(2, availableParallelism());
/** Crews at work at once; who asks for one more waits, with its VM still running. */
const maxCrews = 4;
/** Memory that an idle crew may keep. */
const keptBytes = 64 * 1024 * 1024;
/** Changed pages that a capture holds in memory at most; the rest is written during the pause. */
export const maxHeldBytes = 512 * 1024 * 1024;

class Copier {
  readonly #worker = new Worker(new URL('./copier.ts', import.meta.url), { name: 'page copier' });
  readonly #pending = new Map<number, { resolve(value: never): void; reject(error: Error): void }>();
  #nextId = 1;
  #ended: Error | undefined;

  constructor() {
    this.#worker.on('message', (reply: CopierReply) => this.#settle(reply));
    this.#worker.on('error', (error) => this.#end(error as Error));
    this.#worker.on('exit', () => this.#end(new Error('the copying thread ended')));
    // Idle threads must not keep a program from ending; listening to one would make it do so again.
    this.#worker.unref();
  }

  get fit(): boolean {
    return this.#ended === undefined;
  }

  do<T extends number | Float64Array>(work: CopierWork): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#ended) return reject(this.#ended);
      const id = this.#nextId++;
      this.#pending.set(id, { resolve, reject });
      this.#worker.ref();
      this.#worker.postMessage({ id, ...work } satisfies CopierRequest);
    });
  }

  /** Resolves when it touches nothing any more. */
  async end(): Promise<void> {
    await this.#worker.terminate();
  }

  get busy(): boolean {
    return this.#pending.size > 0;
  }

  #settle(reply: CopierReply): void {
    const pending = this.#pending.get(reply.id);
    this.#pending.delete(reply.id);
    if (this.#pending.size === 0) this.#worker.unref();
    if ('value' in reply) pending?.resolve(reply.value as never);
    else
      pending?.reject(
        new ThawError(reply.code === 'ENOSPC' ? 'no-space' : 'hypervisor-failed', reply.message),
      );
  }

  #end(error: Error): void {
    this.#ended ??= error;
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
  }
}

export class CopierCrew {
  readonly #copiers = Array.from({ length: copiersPerCrew }, () => new Copier());
  #reservedBytes = 0;
  #rehearsed = false;
  #failed = false;
  #holding = false;

  get size(): number {
    return this.#copiers.length;
  }

  /** Room for `sizeBytes` over all copiers, faulted in before anything is paused. */
  async reserve(sizeBytes: number): Promise<void> {
    const shareBytes = Math.ceil(Math.min(sizeBytes, maxHeldBytes) / this.size);
    this.#reservedBytes = Math.max(this.#reservedBytes, shareBytes * this.size);
    await this.divide(
      this.#copiers.map(() => shareBytes),
      (bytes) => ({ op: 'reserve', sizeBytes: bytes }),
    );
  }

  /** False: its code has not run yet, and would take twice the time for scan and copy, which is a guest's pause. */
  get isRehearsed(): boolean {
    return this.#rehearsed;
  }

  /** @returns whether all may read memory in the fast way. */
  async rehearse(runs: Float64Array, fromFd: number, pid: number): Promise<boolean> {
    const slow = await this.divide<Float64Array, number>(shareRuns(runs, this.size), (share) => ({
      ...{ op: 'rehearse', fromFd, pid, runs: share },
    }));
    this.#rehearsed = true;
    return slow.every((answer) => answer === 0);
  }

  /** Copies each share into memory, to be written by `write`. @returns bytes that had to be written at once. */
  async take(shares: readonly Float64Array[], fromFd: number, toFd: number, pid?: number): Promise<number> {
    this.#holding = true;
    const starts = startsOf(shares);
    const passedBytes = await this.divide<Float64Array, number>(shares, (runs, index) => ({
      op: 'take',
      fromFd,
      ...(pid === undefined ? {} : { pid }),
      runs,
      toFd,
      positionBytes: starts[index]!,
    }));
    return passedBytes.reduce((sum, bytes) => sum + bytes, 0);
  }

  async write(): Promise<void> {
    await this.divide(this.#copiers, () => ({ op: 'write' }));
    this.#holding = false;
  }

  /** One piece of work per share, all at the same time; a copier always gets the share of its place. */
  async divide<S, T extends number | Float64Array>(
    shares: readonly S[],
    workOf: (share: S, index: number) => CopierWork,
  ): Promise<T[]> {
    const outcomes = await Promise.allSettled(
      shares.map((share, index) => this.#copiers[index]!.do<T>(workOf(share, index))),
    );
    // Only when all have stopped: none may touch a descriptor that the caller closes next.
    return outcomes.map((outcome) => {
      if (outcome.status === 'fulfilled') return outcome.value;
      this.#failed = true;
      throw outcome.reason;
    });
  }

  get worthKeeping(): boolean {
    return (
      !this.#failed &&
      !this.#holding &&
      this.#reservedBytes <= keptBytes &&
      this.#copiers.every(({ fit }) => fit)
    );
  }

  /** Stops work that its caller gave up: after this the descriptors it used may be closed. */
  async abandon(): Promise<void> {
    await Promise.all(this.#copiers.map((copier) => (copier.busy ? copier.end() : undefined)));
  }

  async end(): Promise<void> {
    await Promise.all(this.#copiers.map((copier) => copier.end()));
  }
}

/** Where each share's bytes begin when the shares follow each other in a file. */
export function startsOf(shares: readonly Float64Array[]): number[] {
  const starts: number[] = [];
  let startBytes = 0;
  for (const share of shares) {
    starts.push(startBytes);
    startBytes += bytesOf(share);
  }
  return starts;
}

const idle: CopierCrew[] = [];
const waiting: (() => void)[] = [];
let leased = 0;

/** Waits for a free crew; dispose of the lease as soon as its work is done. */
export async function leaseCrew(): Promise<AsyncDisposable & { crew: CopierCrew }> {
  if (leased >= maxCrews) await new Promise<void>((resolve) => waiting.push(resolve));
  else leased += 1;
  const crew = idle.pop() ?? new CopierCrew();
  return {
    crew,
    async [Symbol.asyncDispose]() {
      if (crew.worthKeeping && idle.length === 0) idle.push(crew);
      else await crew.end();
      const next = waiting.shift();
      if (next) next();
      else leased -= 1;
    },
  };
}
