// Owns the snapshots of one node: which there are, what they are called, who uses them, and their removal.
// Refuses to own how they come to be (capture.ts, snapshot-builder.ts) and the store (stored-snapshots.ts).
// Invariant: removal takes nothing from anybody. Clones and children hold links of their own to every file they need, so
// a snapshot is removed at once, whoever uses it; only an eviction, which is there to give room back, asks who does.
import { randomBytes } from 'node:crypto';
import { link, readdir, rename, rm } from 'node:fs/promises';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import { snapshotIdPattern, snapshotNamePattern } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import { type Paths, snapshotFilesIn } from '../host/paths.ts';
import { materialise } from './materialise.ts';
import type { PagedSnapshots } from './paged-lease.ts';
import {
  ownBytes,
  readRecord,
  readRecordNow,
  type SnapshotRecord,
  unsharedBytes,
  writeRecord,
} from './record.ts';
import { SnapshotUse } from './snapshot-use.ts';

/** A snapshot that is started from once may never be again; one that is started from twice will be. */
const materialiseAtRestore = 2;
/** As long as callers of the API wait for an answer. */
const defaultArrivalWaitMs = 60_000;
/** Two milliseconds' worth. */
const recordsPerTurn = 100;

export interface SnapshotLibraryOptions {
  paths: Paths;
  log: Log;
  /** How long who asks waits for one that comes from the store. */
  arrivalWaitMs?: number;
}

/** Where snapshots of other nodes come from, and this node's go to. */
export interface SnapshotExchange {
  /** @returns undefined when there is no such snapshot. */
  bring(snapshotId: string): Promise<SnapshotRecord | undefined>;
  added(record: SnapshotRecord): void;
  /** @returns whether it had it. */
  remove(snapshotId: string): Promise<boolean>;
}

/** A record, and what only this node knows of it now. */
export interface SnapshotFacts {
  record: SnapshotRecord;
  /** VMs that were restored from it and run. */
  clones: number;
  /** Snapshots whose parent it is. */
  children: string[];
}

export class SnapshotLibrary {
  readonly paths: Paths;
  readonly log: Log;
  readonly use: SnapshotUse;
  readonly #arrivalWaitMs: number;
  readonly #records = new Map<string, SnapshotRecord>();
  readonly #restores = new Map<string, number>();
  /** Names and VMs whose capture is under way. */
  readonly #claims = new Set<string>();
  readonly #materialising = new Map<string, Promise<void>>();
  #exchange: SnapshotExchange | undefined;
  #paged: PagedSnapshots | undefined;
  /** What was read before one is not known after it. */
  #removals = 0;
  /** One at a time: each reads and writes a whole memory. */
  #background: Promise<void> = Promise.resolve();

  constructor(options: SnapshotLibraryOptions) {
    this.paths = options.paths;
    this.log = options.log;
    this.#arrivalWaitMs = options.arrivalWaitMs ?? defaultArrivalWaitMs;
    this.use = new SnapshotUse((snapshotId) => this.paths.snapshotDir(snapshotId));
  }

  /** From now on snapshots come and go; called once, before the library is used. */
  connect(exchange: SnapshotExchange, paged: PagedSnapshots | undefined): void {
    this.#exchange = exchange;
    this.#paged = paged;
  }

  /** Serves the memory of records of the form `paged`. */
  get paged(): PagedSnapshots {
    if (!this.#paged) throw new ThawError('mount-failed', 'no page file system is mounted on this node');
    return this.#paged;
  }

  /**
   * It comes from the store when it is not here.
   * @throws ThawError `template-not-found`, `deadline-exceeded` for one that takes long and comes all the same, and what an
   * arrival fails with.
   */
  async record(snapshotId: string): Promise<SnapshotRecord> {
    const here = await this.here(snapshotId);
    if (here) return here;
    const brought = await this.#bring(snapshotId);
    if (!brought) throw new ThawError('template-not-found', `no snapshot ${snapshotId}`);
    this.#records.set(snapshotId, brought);
    return brought;
  }

  async #bring(snapshotId: string): Promise<SnapshotRecord | undefined> {
    if (!this.#exchange) return undefined;
    const bringing = this.#exchange.bring(snapshotId);
    return await withDeadline(`bringing ${snapshotId}`, this.#arrivalWaitMs, bringing);
  }

  /** @returns undefined when it is not on this node. */
  async here(snapshotId: string): Promise<SnapshotRecord | undefined> {
    const known = this.#records.get(snapshotId);
    if (known) return known;
    const before = this.#removals;
    const record = await readRecord(this.paths.snapshotDir(snapshotId));
    if (record && before === this.#removals) this.#records.set(snapshotId, record);
    return record;
  }

  /** What is known without reading; for who has asked before. */
  known(snapshotId: string): SnapshotRecord | undefined {
    return this.#records.get(snapshotId);
  }

  /** All snapshots of this node, newest first. */
  async list(): Promise<SnapshotRecord[]> {
    const names = await readdir(this.paths.snapshotsDir).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return [];
      throw error;
    });
    const records: SnapshotRecord[] = [];
    for (const [index, id] of names.filter((name) => snapshotIdPattern.test(name)).entries()) {
      if (index % recordsPerTurn === recordsPerTurn - 1) await nextTurn();
      const record = this.#records.get(id) ?? readRecordNow(this.paths.snapshotDir(id));
      if (!record) continue;
      this.#records.set(id, record);
      records.push(record);
    }
    return records.sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
  }

  /** @throws ThawError `template-not-found`. */
  async inspect(snapshotId: string): Promise<SnapshotFacts> {
    const record = await this.record(snapshotId);
    const children = (await this.list()).filter(({ parent }) => parent === snapshotId);
    return {
      record,
      clones: this.use.clonesOf(snapshotId),
      children: children.map((child) => child.snapshotId),
    };
  }

  /** @returns undefined when no snapshot has this name. */
  async find(name: string): Promise<SnapshotRecord | undefined> {
    return (await this.list()).find(({ names }) => names.includes(name));
  }

  /** Here and in the store. Its files go at once; clones and children keep what is theirs. @throws ThawError `template-not-found`. */
  async remove(snapshotId: string): Promise<void> {
    // First, so that it does not come back from there.
    const wasStored = await this.withdraw(snapshotId);
    if (!(await this.here(snapshotId))) {
      if (wasStored) return;
      throw new ThawError('template-not-found', `no snapshot ${snapshotId}`);
    }
    await this.#materialising.get(snapshotId)?.catch(() => {});
    await this.#removeHere(snapshotId);
  }

  /**
   * The local copy goes; whoever asks for the snapshot gets it from where else it is. Up to the caller to know that it is.
   * @returns bytes that this gives back, undefined when somebody uses it. @throws ThawError `template-not-found`.
   */
  async evict(snapshotId: string): Promise<number | undefined> {
    const bytes = await unsharedBytes(this.paths.snapshotDir(snapshotId));
    if (this.use.isUsed(snapshotId) || this.#materialising.has(snapshotId)) return undefined;
    await this.#removeHere(snapshotId);
    return bytes;
  }

  /** In one step: who comes after finds all of it or nothing. The next start would finish an interrupted removal. */
  async #removeHere(snapshotId: string): Promise<void> {
    const dir = this.paths.snapshotDir(snapshotId);
    const gone = `${dir}.${randomBytes(4).toString('hex')}.gone.partial`;
    await rename(dir, gone).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') throw new ThawError('template-not-found', `no snapshot ${snapshotId}`);
      throw error;
    });
    this.#removals++;
    this.forget(snapshotId);
    this.use.forget(snapshotId);
    await rm(gone, { recursive: true, force: true });
  }

  /** Others may not have it any more. @returns whether they could. */
  async withdraw(snapshotId: string): Promise<boolean> {
    return (await this.#exchange?.remove(snapshotId)) ?? false;
  }

  /** Somebody else removed or replaced it. */
  forget(snapshotId: string): void {
    this.#records.delete(snapshotId);
    this.#restores.delete(snapshotId);
  }

  added(record: SnapshotRecord): void {
    this.#records.set(record.snapshotId, record);
    this.#exchange?.added(record);
  }

  /** A VM of it runs. @returns what to call when it has ended. */
  cloneStarted(snapshotId: string): () => void {
    const restores = (this.#restores.get(snapshotId) ?? 0) + 1;
    this.#restores.set(snapshotId, restores);
    if (restores === materialiseAtRestore) this.#materialiseSoon(snapshotId);
    return this.use.cloneStarted(snapshotId);
  }

  /**
   * Reserves a VM and names for one capture. @returns what ends that.
   * @throws ThawError `conflict` when one of them is reserved, or a name taken; `bad-request` for a name that is none.
   */
  async claim(vmId: string, names: readonly string[]): Promise<() => void> {
    for (const name of names)
      if (!snapshotNamePattern.test(name))
        throw new ThawError('bad-request', `a snapshot's name must match ${snapshotNamePattern.source}`);
    const claims = [vmId, ...names.map((name) => `name ${name}`)];
    const busy = claims.find((claim) => this.#claims.has(claim));
    if (busy) throw new ThawError('conflict', `a snapshot of ${busy} is being made`);
    for (const claim of claims) this.#claims.add(claim);
    const end = () => {
      for (const claim of claims) this.#claims.delete(claim);
    };
    try {
      for (const name of names)
        if (await this.find(name)) throw new ThawError('conflict', `a snapshot of the name ${name} exists`);
    } catch (error) {
      end();
      throw error;
    }
    return end;
  }

  /** Gives a snapshot a page file and a disk of its own; nothing to do for one that has. Waits for one under way. */
  async materialise(snapshotId: string): Promise<void> {
    const running = this.#materialising.get(snapshotId);
    if (running) return running;
    const work = this.#materialise(snapshotId).finally(() => this.#materialising.delete(snapshotId));
    this.#materialising.set(snapshotId, work);
    return work;
  }

  /** Resolves when nothing is materialised in the background any more. */
  settled(): Promise<void> {
    return this.#background;
  }

  async #materialise(snapshotId: string): Promise<void> {
    const record = await this.record(snapshotId);
    if (record.form === 'whole') return;
    if (record.form === 'paged') await this.becomeWhole(snapshotId, await this.paged.keep(record));
    else await materialise(record, (whole) => this.#records.set(snapshotId, whole));
  }

  /** All of its memory has come, into `keptPath`. */
  async becomeWhole(snapshotId: string, keptPath: string): Promise<void> {
    const record = await this.here(snapshotId);
    if (record?.form !== 'paged') return;
    const { pagesPath } = snapshotFilesIn(record.dir);
    try {
      await link(keptPath, pagesPath).catch(ignoreExisting);
      const whole: SnapshotRecord = { ...record, form: 'whole', sizeBytes: await ownBytes(record.dir, []) };
      await writeRecord(record.dir, whole);
      this.#records.set(snapshotId, whole);
    } catch (error) {
      // Removed meanwhile: who has a clone of it holds the file.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }

  #materialiseSoon(snapshotId: string): void {
    this.#background = this.#background.then(async () => {
      if (this.#records.get(snapshotId)?.form !== 'delta') return;
      await this.materialise(snapshotId).catch((error) =>
        // Clones start from the delta as before.
        this.log.warn({ err: error, snapshotId }, 'a snapshot could not be materialised'),
      );
    });
  }
}

function ignoreExisting(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EEXIST') throw error;
}
