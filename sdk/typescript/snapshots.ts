// Owns snapshots by themselves: list, inspect, delete. Taking one is a sandbox's (sandbox.ts).
// Invariant: a snapshot is named by its id; what is not known of it is undefined, never a guess.
import { type CallOptions, Connection, type ConnectionOptions } from './connection.ts';
import { NotFoundError } from './errors.ts';
import { type SnapshotInfo, snapshotInfoOf, type WireSnapshot } from './sandbox-info.ts';

export interface SnapshotListOptions extends CallOptions {
  /** Only those taken of this sandbox. */
  sandboxId?: string | undefined;
  /** Only those of this name. */
  name?: string | undefined;
  /** At most so many. Default: all. */
  limit?: number | undefined;
}

/** A snapshot from inside: what it holds and what taking it cost. */
export interface SnapshotDetails {
  snapshotId: string;
  names: string[];
  createdAt: Date | undefined;
  /** The sandbox it was taken of. */
  sandboxId: string | undefined;
  /** The snapshot it was taken on top of. */
  parent: string | undefined;
  /** Guest memory it stands for. */
  sizeBytes: number | undefined;
  /** Room it takes beyond what it shares with others. */
  uniqueBytes: number | undefined;
  dirtyPages: number | undefined;
  /** Milliseconds the sandbox stood still, by stage and in all (`total`). */
  pauseMs: Record<string, number>;
  /** What a host must have to restore it. */
  compatibility: Record<string, unknown>;
}

interface WireDetails {
  snapshotId: string;
  names?: string[];
  createdAt?: string;
  sandboxId?: string | null;
  parent?: string | null;
  sizeBytes?: number | null;
  uniqueBytes?: number | null;
  dirtyPages?: number | null;
  pauseMs?: Record<string, number> | null;
  compatibility?: Record<string, unknown> | null;
}

export class Snapshots {
  readonly #connection: Connection;

  /** @throws {@link AuthenticationError} without an API key. */
  constructor(options: ConnectionOptions = {}) {
    this.#connection = new Connection(options);
  }

  /** Newest first. */
  list(options: SnapshotListOptions = {}): Promise<SnapshotInfo[]> {
    return listSnapshots(this.#connection, options);
  }

  /** @throws {@link NotFoundError}. */
  async get(snapshotId: string, options: CallOptions = {}): Promise<SnapshotDetails> {
    const path = `/v1/snapshots/${encodeURIComponent(snapshotId)}`;
    const wire = await this.#connection.json<WireDetails>(path, options);
    return {
      snapshotId: wire.snapshotId,
      names: wire.names ?? [],
      createdAt: wire.createdAt === undefined ? undefined : new Date(wire.createdAt),
      sandboxId: wire.sandboxId ?? undefined,
      parent: wire.parent ?? undefined,
      sizeBytes: wire.sizeBytes ?? undefined,
      uniqueBytes: wire.uniqueBytes ?? undefined,
      dirtyPages: wire.dirtyPages ?? undefined,
      pauseMs: wire.pauseMs ?? {},
      compatibility: wire.compatibility ?? {},
    };
  }

  /** Sandboxes that were made from it go on. @returns false when there is none of that id. */
  async delete(snapshotId: string, options: CallOptions = {}): Promise<boolean> {
    try {
      const path = `/templates/${encodeURIComponent(snapshotId)}`;
      await this.#connection.json(path, { ...options, method: 'DELETE' });
      return true;
    } catch (error) {
      if (error instanceof NotFoundError) return false;
      throw error;
    }
  }
}

/** @internal */
export async function listSnapshots(
  connection: Connection,
  options: SnapshotListOptions,
): Promise<SnapshotInfo[]> {
  const { sandboxId, name, limit = Number.POSITIVE_INFINITY, ...call } = options;
  const query = new URLSearchParams({
    ...(sandboxId === undefined ? {} : { sandboxID: sandboxId }),
    ...(name === undefined ? {} : { name }),
  });
  const rows = await connection.pages<WireSnapshot>('/snapshots', query, limit, call);
  return rows.map(snapshotInfoOf);
}
