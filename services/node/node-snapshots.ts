// Owns the snapshots of this node as the gateway sees them: captures of sandboxes, listing, removal.
// Refuses to own their files (pool/snapshot) and who may ask. Invariant: the pool serves a sandbox's snapshot only
// while it exists, and never keeps VMs of it warm unasked.
import type { Pool } from '../../pool/pool.ts';
import type { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import type { SnapshotRecord } from '../../pool/snapshot/record.ts';
import { ThawError } from '../../shared/errors.ts';
import { snapshotIdPattern } from '../../shared/ids.ts';
import type { CaptureSandboxRequest, SnapshotFacts } from '../gateway/node-client.ts';
import type { RunningSandbox } from './node-sandboxes.ts';

/** What the E2B client appends to a name that has no tag. */
const defaultTag = ':default';

export interface NodeSnapshotsOptions {
  library: SnapshotLibrary;
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
    return factsOf(await sandbox.lease.vm.capture({ names, source, resume: keepRunning }), 0, []);
  }

  async list(): Promise<SnapshotFacts[]> {
    const records = await this.#options.library.list();
    const children = new Map<string, string[]>();
    for (const { parent, snapshotId } of records)
      if (parent !== undefined) children.set(parent, [...(children.get(parent) ?? []), snapshotId]);
    const clonesOf = (id: string) => this.#options.library.clonesOf(id);
    return records.map((record) =>
      factsOf(record, clonesOf(record.snapshotId), children.get(record.snapshotId) ?? []),
    );
  }

  async inspect(idOrName: string): Promise<SnapshotFacts> {
    const { record, clones, children } = await this.#options.library.inspect(
      (await this.find(idOrName)).snapshotId,
    );
    return factsOf(record, clones, children);
  }

  /** By id or name, with or without the default tag. @throws ThawError `template-not-found`. */
  async find(idOrName: string): Promise<SnapshotRecord> {
    const word = idOrName.endsWith(defaultTag) ? idOrName.slice(0, -defaultTag.length) : idOrName;
    const { library } = this.#options;
    if (snapshotIdPattern.test(word)) return await library.record(word);
    const found = await library.find(word);
    if (!found) throw new ThawError('template-not-found', `no template ${JSON.stringify(word.slice(0, 64))}`);
    return found;
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
    const { snapshotId, kind } = await this.find(idOrName);
    if (kind !== 'sandbox')
      throw new ThawError('conflict', `${snapshotId} belongs to a ${kind}; remove that instead`);
    await library.remove(snapshotId);
    if (this.#served.delete(snapshotId)) pool.forget(snapshotId);
  }
}

function factsOf(record: SnapshotRecord, clones: number, children: string[]): SnapshotFacts {
  const { snapshotId, names, kind, memoryMb, vcpus, compatibility, createdAt } = record;
  return {
    ...{ snapshotId, names, kind, memoryMb, vcpus, compatibility, createdAt, clones, children },
    sandboxId: record.source ?? null,
    parent: record.parent ?? null,
    sizeBytes: memoryMb * 1024 * 1024,
    uniqueBytes: record.sizeBytes,
    dirtyPages: record.dirtyPages ?? null,
    pauseMs: record.pauseMs ?? {},
  };
}
