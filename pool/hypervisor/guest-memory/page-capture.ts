// Owns reading out of a paused process what it changed of its page file: prepare while it runs, scan and copy while
// it is paused, write when it runs again. Neutral to the hypervisor: it needs a pid and the page file's path.
// Invariant: between `prepare` and `write` no memory is faulted in and, up to `maxHeldBytes`, no file is written.
import { type FileHandle, open } from 'node:fs/promises';
import { ThawError } from '../../../shared/errors.ts';
import { metrics } from '../../../shared/metrics.ts';
import type { PageDelta } from '../hypervisor.ts';
import { type CopierCrew, leaseCrew } from './copier-crew.ts';
import { bytesOf, pageRunsOf, runFields, shareRuns, startOf } from './dirty-runs.ts';
import { type Mapping, mappingsOf, shareOut } from './mappings.ts';

/** The process runs on between `prepare` and the pause, and changes more. */
const growth = 1.25;
const growthBytes = 4 * 1024 * 1024;
/** Enough for the engine to compile what copies. */
const rehearsedBytes = 16 * 1024 * 1024;

export class PageCapture implements AsyncDisposable {
  readonly #pid: number;
  readonly #crew: CopierCrew;
  readonly #pagemap: FileHandle;
  readonly #memory: FileHandle;
  readonly #mappings: Mapping[];
  readonly #resources: AsyncDisposableStack;
  #runs = new Float64Array(0);

  /**
   * @param pagesPath as the process was given it.
   * @param extraBytes room for other files that are copied in the same pause.
   */
  static async prepare(pid: number, pagesPath: string, extraBytes = 0): Promise<PageCapture> {
    await using resources = new AsyncDisposableStack();
    const { crew } = resources.use(await leaseCrew());
    const pagemap = await openOf(pid, 'pagemap', resources);
    // The descriptor holds on to this memory: should the pid be given out anew, it is never another process's.
    const memory = await openOf(pid, 'mem', resources);
    const mappings = await mappingsOf(pid, pagesPath);
    const capture = new PageCapture(pid, crew, pagemap, memory, mappings, resources.move());
    try {
      const { sizeBytes } = await capture.scan();
      await crew.reserve(sizeBytes * growth + growthBytes + extraBytes);
      if (!crew.isRehearsed) await capture.#rehearse();
      return capture;
    } catch (error) {
      await capture[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(
    pid: number,
    crew: CopierCrew,
    pagemap: FileHandle,
    memory: FileHandle,
    mappings: Mapping[],
    resources: AsyncDisposableStack,
  ) {
    this.#pid = pid;
    this.#crew = crew;
    this.#pagemap = pagemap;
    this.#memory = memory;
    this.#mappings = mappings;
    this.#resources = resources;
  }

  async #rehearse(): Promise<void> {
    const start = startOf(this.#runs, rehearsedBytes);
    const isFast = await this.#crew.rehearse(start, this.#memory.fd, this.#pid);
    if (!isFast) metrics.fallbacks.inc({ kind: 'capture-read-by-file' });
    await this.scan();
  }

  /** Finds the changed pages. The process must stand still until `copy` has ended. */
  async scan(): Promise<{ sizeBytes: number }> {
    const pagemapFd = this.#pagemap.fd;
    const shares = await this.#crew.divide<Mapping[], Float64Array>(
      shareOut(this.#mappings, this.#crew.size),
      (mappings) => ({ op: 'scan', pagemapFd, mappings }),
    );
    this.#runs = joined(shares);
    return { sizeBytes: bytesOf(this.#runs) };
  }

  /** Copies the pages of the last scan, to be written to `delta`. */
  async copy(delta: FileHandle): Promise<void> {
    await this.#take(this.#memory, this.#runs, delta, this.#pid);
  }

  /** Copies another file as it is now, to be written to `to`; counts against `extraBytes`. */
  async copyFile(from: FileHandle, to: FileHandle): Promise<void> {
    const { size } = await from.stat();
    await this.#take(from, Float64Array.of(0, 0, size), to);
  }

  async #take(from: FileHandle, runs: Float64Array, to: FileHandle, pid?: number): Promise<void> {
    const shares = shareRuns(runs, this.#crew.size);
    const passedBytes = await this.#crew.take(shares, from.fd, to.fd, pid);
    if (passedBytes > 0) metrics.fallbacks.inc({ kind: 'capture-write-in-pause' });
  }

  /** Writes everything that was copied. The process may run again. */
  write(): Promise<void> {
    return this.#crew.write();
  }

  /** What `copy` copied, for who restores it. */
  delta(path: string): PageDelta {
    return { path, runs: pageRunsOf(this.#runs) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#crew.abandon();
    await this.#resources.disposeAsync();
  }
}

async function openOf(pid: number, name: string, resources: AsyncDisposableStack): Promise<FileHandle> {
  try {
    return resources.use(await open(`/proc/${pid}/${name}`, 'r'));
  } catch (error) {
    throw new ThawError('hypervisor-failed', `process ${pid}: ${(error as Error).message}`, { cause: error });
  }
}

function joined(shares: readonly Float64Array[]): Float64Array<ArrayBuffer> {
  const all = new Float64Array(shares.reduce((sum, share) => sum + share.length, 0));
  let at = 0;
  for (const share of shares) {
    all.set(share, at);
    at += share.length;
  }
  if (at % runFields !== 0) throw new Error('a run was cut apart');
  return all;
}
