// Owns the snapshots of this node as the gateway sees them: captures of sandboxes, listing, removal.
// Refuses to own their files (pool/snapshot) and who may ask. Invariant: the pool serves a sandbox's snapshot only
// while it exists, and never keeps VMs of it warm unasked.
import type { Pool } from '../../pool/pool.ts';
import type { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import type { SnapshotSummary } from '../../pool/snapshot/lineage.ts';
import { pausesOf } from '../../pool/snapshot/local-capture.ts';
import type { SnapshotRecord } from '../../pool/snapshot/record.ts';
import { isCalled, type StoredSnapshots } from '../../pool/snapshot/stored-snapshots.ts';
import { type LocalVerification, verifyLocal } from '../../pool/snapshot/verify-local.ts';
import { mergedOrder, pagesOf } from '../../pool/snapshot/working-set.ts';
import { ThawError } from '../../shared/errors.ts';
import { snapshotIdPattern, snapshotNamePattern } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import type {
  CaptureSandboxRequest,
  SnapshotFacts,
  SnapshotVerification,
  VerifiedCopy,
} from '../gateway/node-client.ts';
import type { RunningSandbox } from './node-sandboxes.ts';

/** What the E2B client appends to a name that has no tag. */
const defaultTag = ':default';

export interface NodeSnapshotsOptions {
  library: SnapshotLibrary;
  /** Absent where no store is configured. */
  stored?: StoredSnapshots | undefined;
  log: Log;
  pool: Pool;
  /** Reads a record and checks that this node may restore it. */
  load(snapshotId: string): Promise<unknown>;
  maxVms: number;
}

export class NodeSnapshots {
  readonly #options: NodeSnapshotsOptions;
  /** Of sandboxes, known to the pool. */
  readonly #served = new Set<string>();

  constructor(options: NodeSnapshotsOptions) {
    this.#options = options;
  }

  async capture(sandbox: RunningSandbox, request: CaptureSandboxRequest): Promise<SnapshotFacts> {
    const { names, keepRunning } = request;
    const source = sandbox.sandboxId;
    await this.#refuseTaken(names);
    return this.#factsOf(await sandbox.lease.vm.capture({ names, source, resume: keepRunning }));
  }

  /** The library knows its own names; a store that does not answer is in nobody's way. */
  async #refuseTaken(names: readonly string[]): Promise<void> {
    if (names.length === 0) return;
    const taken = new Set((await this.#summaries()).flatMap((summary) => summary.names));
    const name = names.find((wanted) => taken.has(wanted));
    if (name !== undefined) throw new ThawError('conflict', `a snapshot of the name ${name} is in the store`);
  }

  /** Of this node, and of others that are in the store; newest first. */
  async list(): Promise<SnapshotFacts[]> {
    const { records, stored } = await this.#all();
    const children = childrenOf([...records, ...[...stored.values()].map(parented)]);
    const here = records.map((record) => {
      const { snapshotId } = record;
      return this.#factsOf(record, children.get(snapshotId), stored.get(snapshotId));
    });
    for (const { snapshotId } of records) stored.delete(snapshotId);
    const elsewhere = [...stored.values()].map((summary) =>
      storedFactsOf(summary, children.get(summary.snapshotId)),
    );
    return [...here, ...elsewhere].sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
  }

  async inspect(idOrName: string): Promise<SnapshotFacts> {
    const word = wordOf(idOrName);
    const { records, stored } = await this.#all();
    const summaries = [...stored.values()];
    const record = records.find((one) => isCalled(one, word));
    const summary = record ? stored.get(record.snapshotId) : summaries.find((one) => isCalled(one, word));
    const { snapshotId } = record ?? summary ?? (await this.#lookUp(word));
    const children = childrenOf([...records, ...summaries.map(parented)]).get(snapshotId);
    const workingSet = summary && (await this.#workingSetOf(summary));
    if (record) return { ...this.#factsOf(record, children, summary), ...(summary && { workingSet }) };
    if (!summary) throw notFound(word);
    const { compatibility } = await this.#options.stored!.load(snapshotId);
    return { ...storedFactsOf(summary, children), compatibility: { ...compatibility }, workingSet };
  }

  async #workingSetOf(memory: SnapshotSummary): Promise<SnapshotFacts['workingSet']> {
    const set = await this.#options.stored!.workingSetOf(memory);
    return set ? { pages: pagesOf(mergedOrder(set)), clones: set.recordings.length } : null;
  }

  /** By one look at each of the two: what is here, and what the store lists. */
  async #all(): Promise<{ records: SnapshotRecord[]; stored: Map<string, SnapshotSummary> }> {
    const [records, summaries] = await Promise.all([this.#options.library.list(), this.#summaries()]);
    return { records, stored: new Map(summaries.map((summary) => [summary.snapshotId, summary])) };
  }

  /** Every copy there is: by id even when the record on this node cannot be read. @throws ThawError `template-not-found`. */
  async verify(idOrName: string): Promise<SnapshotVerification> {
    const word = wordOf(idOrName);
    const { library, stored } = this.#options;
    const snapshotId = snapshotIdPattern.test(word) ? word : (await this.#lookUp(word)).snapshotId;
    using _checked = library.use.hold(snapshotId);
    const local = await verifyLocal(library.paths.snapshotDir(snapshotId));
    const remote = stored && (await storedCopyOf(stored, snapshotId));
    const copies = [local && localCopyOf(local), remote].filter((copy) => copy !== undefined);
    if (copies.length === 0) throw notFound(word);
    return { snapshotId, copies };
  }

  /** By id or name, with or without the default tag; it comes from the store when it is not here. @throws ThawError `template-not-found`. */
  async find(idOrName: string): Promise<SnapshotRecord> {
    const word = wordOf(idOrName);
    const { snapshotId } = snapshotIdPattern.test(word) ? { snapshotId: word } : await this.#lookUp(word);
    return await this.#options.library.record(snapshotId);
  }

  /** As `find`, but it stays where it is. @throws also store errors, for what is not here. */
  async #lookUp(idOrName: string): Promise<{ snapshotId: string; kind: SnapshotFacts['kind'] }> {
    const { library, stored } = this.#options;
    const word = wordOf(idOrName);
    const local = snapshotIdPattern.test(word) ? await library.here(word) : await library.find(word);
    const found = local ?? (await stored?.find(word));
    if (!found) throw notFound(word);
    return found;
  }

  /** What this node has can be listed without the store, too. */
  async #summaries(): Promise<SnapshotSummary[]> {
    const { stored, log } = this.#options;
    try {
      return (await stored?.list()) ?? [];
    } catch (error) {
      log.warn({ err: error }, 'the store does not say what it has');
      metrics.fallbacks.inc({ kind: 'listed-without-store' });
      return [];
    }
  }

  #factsOf(record: SnapshotRecord, children: string[] = [], summary?: SnapshotSummary): SnapshotFacts {
    const { snapshotId, names, kind, memoryMb, vcpus, compatibility, createdAt } = record;
    const { library, stored } = this.#options;
    const state = stored?.stateOf(snapshotId);
    return {
      ...{ snapshotId, names, kind, memoryMb, vcpus, compatibility, createdAt, children },
      clones: library.use.clonesOf(snapshotId),
      sandboxId: record.source ?? null,
      parent: record.parent ?? null,
      sizeBytes: memoryMb * 1024 * 1024,
      uniqueBytes: record.sizeBytes,
      here: true,
      stored: !stored ? 'no' : summary ? 'yes' : state === 'refused' ? 'refused' : 'waiting',
      storedBytes: summary?.storedBytes ?? null,
      dirtyPages: record.dirtyPages ?? null,
      pauseMs: record.pauseMs ?? {},
    };
  }

  /** Makes the pool able to restore it, on demand. */
  async serve(snapshotId: string): Promise<void> {
    if (this.#served.has(snapshotId)) return;
    const { pool, load, maxVms } = this.#options;
    await load(snapshotId);
    pool.configure(snapshotId, { min: 0, max: maxVms, recycle: 'fresh', concurrency: 1 });
    this.#served.add(snapshotId);
  }

  async remove(idOrName: string): Promise<void> {
    const { library, pool } = this.#options;
    const { snapshotId, kind } = await this.#lookUp(idOrName);
    if (kind !== 'sandbox')
      throw new ThawError('conflict', `${snapshotId} belongs to a ${kind}; remove that instead`);
    await library.remove(snapshotId);
    if (this.#served.delete(snapshotId)) pool.forget(snapshotId);
  }
}

/** @throws ThawError `template-not-found` for what nothing can be called: no file and no store is asked for it. */
function wordOf(idOrName: string): string {
  const word = idOrName.endsWith(defaultTag) ? idOrName.slice(0, -defaultTag.length) : idOrName;
  if (!snapshotNamePattern.test(word)) throw notFound(word);
  return word;
}

const notFound = (word: string) =>
  new ThawError('template-not-found', `no template ${JSON.stringify(word.slice(0, 64))}`);

const localCopyOf = ({ files, bytes, damaged }: LocalVerification): VerifiedCopy => ({
  ...{ copy: 'local', units: 'files', checked: files, bytes, damaged },
});

async function storedCopyOf(stored: StoredSnapshots, snapshotId: string): Promise<VerifiedCopy | undefined> {
  const copy = { copy: 'store', units: 'frames' } as const;
  try {
    const verified = await stored.verify(snapshotId);
    if (!verified) return undefined;
    const { frames: checked, bytes } = verified;
    const damaged = verified.damaged.map(({ frame, reason }) => ({ what: `frame ${frame}`, reason }));
    return { ...copy, checked, bytes, damaged };
  } catch (error) {
    if (!(error instanceof ThawError) || error.code !== 'snapshot-damaged') throw error;
    return { ...copy, checked: 0, bytes: 0, damaged: [{ what: 'manifest', reason: error.message }] };
  }
}

const parented = ({ snapshotId, parentId }: SnapshotSummary) => ({
  snapshotId,
  ...(parentId === undefined ? {} : { parent: parentId }),
});

function childrenOf(all: readonly { snapshotId: string; parent?: string }[]): Map<string, string[]> {
  const children = new Map<string, Set<string>>();
  for (const { parent, snapshotId } of all)
    if (parent !== undefined) children.set(parent, (children.get(parent) ?? new Set()).add(snapshotId));
  return new Map([...children].map(([parent, ids]) => [parent, [...ids]]));
}

/** Of a snapshot that is only in the store. */
function storedFactsOf(summary: SnapshotSummary, children: string[] = []): SnapshotFacts {
  const { snapshotId, names, kind, memoryMb, vcpus, uniqueBytes, storedBytes, facts } = summary;
  return {
    ...{ snapshotId, names, kind, memoryMb, vcpus, uniqueBytes, storedBytes, children },
    sandboxId: summary.source ?? null,
    parent: summary.parentId ?? null,
    clones: 0,
    sizeBytes: memoryMb * 1024 * 1024,
    here: false,
    stored: 'yes',
    dirtyPages: facts.dirtyPages ?? null,
    pauseMs: pausesOf(facts),
    compatibility: { key: summary.compatibilityKey },
    createdAt: new Date(summary.createdAtMs).toISOString(),
  };
}
