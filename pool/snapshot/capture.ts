// Owns making a snapshot of a running VM: the guest holds, its VMM is captured, the guest proceeds, and what came out
// becomes a snapshot directory with its record written last.
// Refuses to own how a VMM is captured (pool/hypervisor) and how snapshots are kept (library.ts).
// Invariant: at every moment there is a whole snapshot or none, and the VM runs on unless it was to stay paused.
import { randomBytes } from 'node:crypto';
import { link, mkdir, rename, rm, statfs } from 'node:fs/promises';
import { Cleanup } from '../../shared/cleanup.ts';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import { newSnapshotId } from '../../shared/ids.ts';
import { metrics } from '../../shared/metrics.ts';
import type { ControlClient } from '../guest/control-client.ts';
import { type SnapshotFiles, snapshotFilesIn } from '../host/paths.ts';
import { mergeLayers, rebaseLayer } from '../hypervisor/disk-layer/layers.ts';
import type { Machine, PageDelta } from '../hypervisor/hypervisor.ts';
import type { CloneFiles } from './clone-files.ts';
import { writeDeltaRuns } from './delta-runs.ts';
import { isDiskLayer } from './disk-form.ts';
import type { SnapshotLibrary } from './library.ts';
import { ownBytes, publishDirectory, recordFormat, type SnapshotRecord, writeRecord } from './record.ts';

/** The guest answers within milliseconds unless all its CPU is taken. */
const holdTimeoutMs = 5_000;
const proceedTimeoutMs = 15_000;
const finishTimeoutMs = 120_000;
/** Left free on the disk, for everything else that must go on. */
const defaultReserveBytes = 512 * 1024 * 1024;
const pauseStages = new Set(['pause', 'state', 'scan', 'copy', 'disk', 'resume']);
const pageBytes = 4096;

export interface CaptureSource {
  machine: Machine;
  control: ControlClient;
  files: CloneFiles;
  /** The guest could not be told to go on: the VM is of no more use. */
  onLost(reason: string): void;
}

export interface CaptureRequest {
  names?: readonly string[];
  /** Whose memory it is, for those who look for it later. */
  source?: string;
  /**
   * Given: it becomes a function version's, whose clones' runner answers these paths before they count as warm; and
   * it is told to nobody before its builder has finished it.
   */
  prime?: readonly string[];
  /** False: the VM stays paused and is then destroyed; when the capture fails it runs on all the same. */
  resume: boolean;
  /** Aborts what has not begun; from the pause on the capture ends by itself. */
  signal?: AbortSignal;
  reserveBytes?: number;
  /** Stages in order: hold, pause, state, scan, copy, disk, resume, write, proceed, layers, record. */
  onStage?: (stage: string, elapsedMs: number) => void;
}

/**
 * @throws ThawError `conflict` when this VM or one of the names is being captured or taken, `no-space`,
 * `guest-unreachable`, `hypervisor-failed`, `deadline-exceeded`.
 */
export async function captureVm(
  library: SnapshotLibrary,
  source: CaptureSource,
  request: CaptureRequest,
): Promise<SnapshotRecord> {
  request.signal?.throwIfAborted();
  await using undo = new Cleanup();
  const endClaim = await library.claim(source.machine.vmId, request.names ?? []);
  undo.defer('claim', endClaim);
  const record = await new Capture(library, source, request, undo).run();
  undo.disarm();
  endClaim();
  return record;
}

class Capture {
  readonly #library: SnapshotLibrary;
  readonly #source: CaptureSource;
  readonly #request: CaptureRequest;
  readonly #undo: Cleanup;
  readonly #snapshotId = newSnapshotId();
  readonly #nonce = randomBytes(16).toString('hex');
  readonly #stages = new Map<string, number>();
  readonly #dir: string;
  readonly #partialDir: string;
  readonly #files: SnapshotFiles;
  readonly #frozenDiskPath: string;

  constructor(library: SnapshotLibrary, source: CaptureSource, request: CaptureRequest, undo: Cleanup) {
    this.#library = library;
    this.#source = source;
    this.#request = request;
    this.#undo = undo;
    this.#dir = library.paths.snapshotDir(this.#snapshotId);
    this.#partialDir = `${this.#dir}.partial`;
    this.#files = snapshotFilesIn(this.#partialDir);
    this.#frozenDiskPath = `${this.#files.diskPath}.frozen`;
  }

  async run(): Promise<SnapshotRecord> {
    await mkdir(this.#library.paths.snapshotsDir, { recursive: true });
    await this.#checkSpace();
    this.#undo.defer('partial snapshot', () => rm(this.#partialDir, { recursive: true, force: true }));
    await mkdir(this.#partialDir, { mode: 0o700 });
    const delta = await this.#capture();
    try {
      return await withDeadline('finishing the snapshot', finishTimeoutMs, this.#finish(delta));
    } catch (error) {
      if (!this.#request.resume) await this.#runOn();
      throw typed(error);
    }
  }

  async #checkSpace(): Promise<void> {
    const { reserveBytes = defaultReserveBytes } = this.#request;
    const { bavail, bsize } = await statfs(this.#library.paths.snapshotsDir);
    // The most that a capture writes but for the disk layer, which the reserve covers.
    const neededBytes = this.#source.files.record.memoryMb * 1024 * 1024;
    if (bavail * bsize - neededBytes < reserveBytes)
      throw new ThawError('no-space', `${bavail * bsize} bytes are free, a snapshot may need ${neededBytes}`);
  }

  /** From here until the guest is told to proceed nothing may go wrong without that. */
  async #capture(): Promise<PageDelta> {
    const { machine, control } = this.#source;
    const { resume } = this.#request;
    const target = {
      deltaPath: this.#files.deltaPath,
      devicesPath: this.#files.devicesPath,
      diskPath: this.#frozenDiskPath,
    };
    let held = false;
    let proceeding: Promise<void> | undefined;
    const onStage = (stage: string, elapsedMs: number) => {
      this.#note(stage, elapsedMs);
      // At once: users wait for this, not for the files.
      if (stage === 'resume') proceeding = this.#proceed();
    };
    const beforePause = () => {
      held = true;
      return this.#timed('hold', async () => {
        await control.request({ op: 'hold', nonce: this.#nonce }, holdTimeoutMs);
      });
    };
    try {
      const delta = await machine.captureClone(target, { resume, beforePause, onStage });
      if (!held) throw new ThawError('hypervisor-failed', 'the guest was not told of its capture');
      // A guest that is lost is told by `onLost`; what was captured of it is whole.
      await proceeding;
      this.#notePause();
      return delta;
    } catch (error) {
      if (held) await (proceeding ?? this.#proceed());
      throw error;
    }
  }

  async #proceed(): Promise<void> {
    try {
      await this.#timed('proceed', () =>
        this.#source.control.request(
          { op: 'proceed', nonce: this.#nonce, wallClockMs: Date.now() },
          proceedTimeoutMs,
        ),
      );
    } catch (error) {
      if (!(await this.#serves()))
        this.#source.onLost(`the guest did not go on after a capture: ${(error as Error).message}`);
    }
  }

  /** A refused `proceed` is no harm where the `hold` was refused before. */
  async #serves(): Promise<boolean> {
    const health = this.#source.control.request<{ state: string }>({ op: 'health' }, holdTimeoutMs);
    return health.then(
      ({ state }) => state === 'ready',
      () => false,
    );
  }

  async #runOn(): Promise<void> {
    try {
      await this.#source.machine.resume();
    } catch (error) {
      this.#source.onLost(`the VM did not run on after a capture: ${(error as Error).message}`);
      return;
    }
    await this.#proceed();
  }

  async #finish(delta: PageDelta): Promise<SnapshotRecord> {
    await this.#timed('layers', async () => {
      await link(this.#source.files.from.pagesPath, this.#files.basePagesPath);
      await writeDeltaRuns(this.#files.deltaRunsPath, delta.runs);
      await this.#finishDisk();
    });
    return await this.#timed('record', () => this.#publish(delta));
  }

  /** The frozen layer over the base's disk: merged with what the parent itself had changed of that, if it had. */
  async #finishDisk(): Promise<void> {
    const { diskPath, baseDiskPath } = this.#files;
    const { record, links } = this.#source.files;
    if (!(await isDiskLayer(record.compatibility, this.#frozenDiskPath)))
      return await rename(this.#frozenDiskPath, diskPath);
    const finalBasePath = snapshotFilesIn(this.#dir).baseDiskPath;
    if (record.form === 'whole') {
      await link(links.diskPath, baseDiskPath);
      await rebaseLayer(this.#frozenDiskPath, finalBasePath);
      await rename(this.#frozenDiskPath, diskPath);
    } else {
      await link(links.baseDiskPath, baseDiskPath);
      await mergeLayers(diskPath, links.diskPath, this.#frozenDiskPath, finalBasePath);
      await rm(this.#frozenDiskPath);
    }
  }

  async #publish(delta: PageDelta): Promise<SnapshotRecord> {
    const parent = this.#source.files.record;
    const { basePagesPath, baseDiskPath } = this.#files;
    const { memoryMb, vcpus, compatibility } = parent;
    const prime = this.#request.prime ?? parent.prime;
    const record: SnapshotRecord = {
      format: recordFormat,
      snapshotId: this.#snapshotId,
      kind: this.#request.prime ? 'function' : 'sandbox',
      names: [...(this.#request.names ?? [])],
      ...(this.#request.source === undefined ? {} : { source: this.#request.source }),
      parent: parent.snapshotId,
      depth: parent.depth + 1,
      form: 'delta',
      base: parent.base ?? parent.snapshotId,
      dir: this.#dir,
      nonce: this.#nonce,
      ...{ memoryMb, vcpus, compatibility },
      ...(prime ? { prime: [...prime] } : {}),
      createdAt: new Date().toISOString(),
      dirtyPages: bytesOf(delta) / pageBytes,
      pauseMs: this.#pauseMs(),
      sizeBytes: await ownBytes(this.#partialDir, [basePagesPath, baseDiskPath]),
    };
    await writeRecord(this.#partialDir, record);
    await publishDirectory(this.#partialDir, this.#dir);
    if (!this.#request.prime) this.#library.added(record);
    metrics.snapshotDirtyBytes.inc(bytesOf(delta));
    return record;
  }

  async #timed<R>(stage: string, work: () => Promise<R>): Promise<R> {
    const startMs = performance.now();
    const result = await work();
    this.#note(stage, performance.now() - startMs);
    return result;
  }

  #note(stage: string, elapsedMs: number): void {
    this.#stages.set(stage, elapsedMs);
    metrics.snapshotStage.observe({ stage }, elapsedMs / 1000);
    this.#request.onStage?.(stage, elapsedMs);
  }

  #notePause(): void {
    if (this.#request.resume) metrics.snapshotPause.observe(this.#pauseMs().total! / 1000);
  }

  #pauseMs(): Record<string, number> {
    const stages = [...this.#stages].filter(([stage]) => pauseStages.has(stage));
    const total = stages.reduce((sum, [, elapsedMs]) => sum + elapsedMs, 0);
    return Object.fromEntries(
      [...stages, ['total', total]].map(([stage, ms]) => [stage, rounded(ms as number)]),
    );
  }
}

const bytesOf = (delta: PageDelta): number => delta.runs.reduce((sum, run) => sum + run.sizeBytes, 0);
const rounded = (milliseconds: number): number => Math.round(milliseconds * 1000) / 1000;

function typed(error: unknown): unknown {
  if (error instanceof ThawError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  return new ThawError(code === 'ENOSPC' ? 'no-space' : 'hypervisor-failed', `the snapshot: ${message}`, {
    cause: error,
  });
}
