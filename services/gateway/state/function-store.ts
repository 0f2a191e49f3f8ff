// Owns functions and their versions: the memory that requests read and the Redis hashes behind it.
// Refuses to own builds (deployments.ts). Invariant: memory is only ever replaced by what Redis answered,
// one function at a time, so a reader never sees half of a change.
import { ThawError } from '../../../shared/errors.ts';
import type { FunctionVersion } from '../node-client.ts';
import { changesChannel, type RedisLink, redisKeys } from './redis-link.ts';
import type { FunctionStore, FunctionView, NewVersion, VersionRecord } from './state-store.ts';

interface Entry {
  view: FunctionView;
  current: FunctionVersion | undefined;
  ready: Map<number, FunctionVersion>;
}

type Hash = Record<string, string>;

export class RedisFunctionStore implements FunctionStore {
  readonly #link: RedisLink;
  #entries = new Map<string, Entry>();

  constructor(link: RedisLink) {
    this.#link = link;
  }

  resolve(name: string, version?: number): FunctionVersion | undefined {
    const entry = this.#entries.get(name);
    if (entry === undefined) return undefined;
    return version === undefined ? entry.current : entry.ready.get(version);
  }

  get(name: string): FunctionView | undefined {
    return this.#entries.get(name)?.view;
  }

  list(): FunctionView[] {
    return [...this.#entries.values()].map((entry) => entry.view).sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async beginVersion(wanted: NewVersion, leaseToken: string, leaseMs: number): Promise<VersionRecord> {
    const { name } = wanted;
    const createdAt = new Date().toISOString();
    const record = {
      ...wanted,
      state: 'building',
      snapshotId: null,
      createdAt,
      finishedAt: null,
      error: null,
    } as const;
    const version = await this.#link.script(
      'begin-version',
      [redisKeys.functions, redisKeys.versions(name), redisKeys.counters, redisKeys.buildLease(name)],
      [name, JSON.stringify({ createdAt }), JSON.stringify(record), leaseToken, leaseMs, changesChannel],
    );
    if (version === 0)
      throw new ThawError(
        'conflict',
        `a version of ${name} is being built; deploy again when it is ready or failed`,
      );
    await this.reload(name);
    return { ...record, version: Number(version) };
  }

  async extendBuild(name: string, leaseToken: string, leaseMs: number): Promise<boolean> {
    const kept = await this.#link.script(
      'extend-build',
      [redisKeys.buildLease(name)],
      [leaseToken, String(leaseMs)],
    );
    return kept === 1;
  }

  async buildLeaseMs(name: string): Promise<number> {
    const leftMs = await this.#link.run((redis) => redis.pttl(redisKeys.buildLease(name)));
    // Redis says 0 within the last millisecond of a lease that is still held, and a negative number when there is none.
    return leftMs < 0 ? 0 : Math.max(1, leftMs);
  }

  async finishVersion(record: VersionRecord, leaseToken: string): Promise<void> {
    const { name, version } = record;
    const kept = await this.#link.script(
      'finish-version',
      [redisKeys.versions(name), redisKeys.current, redisKeys.buildLease(name)],
      [
        name,
        version,
        JSON.stringify(record),
        leaseToken,
        record.state === 'ready' ? '1' : '0',
        changesChannel,
      ],
    );
    if (kept !== 1)
      throw new ThawError('conflict', `the build of ${name}@${version} lost its lease before it ended`);
    await this.reload(name);
  }

  async putVersion(record: VersionRecord): Promise<void> {
    const { name, version } = record;
    const kept = await this.#link.script(
      'put-version',
      [redisKeys.versions(name)],
      [name, version, JSON.stringify(record), changesChannel],
    );
    if (kept !== 1) throw new ThawError('function-not-found', `${name}@${version} has been removed`);
    await this.reload(name);
  }

  async activate(name: string, version: number): Promise<void> {
    const kept = await this.#link.script(
      'activate-version',
      [redisKeys.versions(name), redisKeys.current],
      [name, version, changesChannel],
    );
    if (kept !== 1) throw new ThawError('function-not-found', `${name}@${version} has been removed`);
    await this.reload(name);
  }

  async removeVersion(name: string, version: number): Promise<void> {
    const removed = await this.#link.script(
      'remove-version',
      [redisKeys.versions(name), redisKeys.current],
      [name, version, changesChannel],
    );
    if (removed !== 1) throw new ThawError('conflict', `${name}@${version} is the version that serves`);
    await this.reload(name);
  }

  async remove(name: string): Promise<boolean> {
    const removed = await this.#link.script(
      'remove-function',
      [redisKeys.functions, redisKeys.versions(name), redisKeys.current, redisKeys.buildLease(name)],
      [name, changesChannel],
    );
    if (removed === -1) throw new ThawError('conflict', `a version of ${name} is being built`);
    await this.reload(name);
    return removed === 1;
  }

  /** Reads one function anew. Replies come in the order of the questions, so memory never goes back in time. */
  async reload(name: string): Promise<void> {
    const [head, current, versions] = await this.#link.readTogether([
      ['hget', redisKeys.functions, name],
      ['hget', redisKeys.current, name],
      ['hgetall', redisKeys.versions(name)],
    ]);
    const entry = entryOf(name, head as string | null, current as string | null, versions as Hash);
    if (entry) this.#entries.set(name, entry);
    else this.#entries.delete(name);
  }

  async reloadAll(): Promise<void> {
    const heads = await this.#link.run((redis) => redis.hgetall(redisKeys.functions));
    for (const name of this.#entries.keys()) if (!(name in heads)) this.#entries.delete(name);
    await Promise.all(Object.keys(heads).map((name) => this.reload(name)));
  }

  /** Writes what memory holds into a Redis that lost it; what is there already wins. */
  async restoreToRedis(): Promise<void> {
    await this.#link.run(async (redis) => {
      const batch = redis.multi();
      for (const { view } of this.#entries.values()) {
        batch.hsetnx(redisKeys.functions, view.name, JSON.stringify({ createdAt: view.createdAt }));
        const last = Math.max(0, ...view.versions.map((record) => record.version));
        batch.hsetnx(redisKeys.counters, view.name, last);
        if (view.currentVersion !== null) batch.hsetnx(redisKeys.current, view.name, view.currentVersion);
        for (const record of view.versions)
          batch.hsetnx(redisKeys.versions(view.name), String(record.version), JSON.stringify(record));
      }
      await batch.exec();
    });
  }
}

function entryOf(name: string, head: string | null, current: string | null, versions: Hash): Entry | null {
  if (head === null) return null;
  const records = Object.entries(versions)
    .map(([version, json]) => ({ ...JSON.parse(json), version: Number(version) }) as VersionRecord)
    .sort((a, b) => b.version - a.version);
  const ready = new Map<number, FunctionVersion>();
  for (const record of records) {
    const servable = servableOf(record);
    if (servable) ready.set(record.version, servable);
  }
  const currentVersion = current === null ? null : Number(current);
  const { createdAt } = JSON.parse(head) as { createdAt: string };
  return {
    view: { name, createdAt, currentVersion, versions: records },
    current: currentVersion === null ? undefined : ready.get(currentVersion),
    ready,
  };
}

/** What a node needs of a version; undefined when it cannot be served. */
export function servableOf(record: VersionRecord): FunctionVersion | undefined {
  if (record.state !== 'ready' || record.snapshotId === null) return undefined;
  const { name, version, snapshotId, manifest, bundleSha256, createdAt } = record;
  return { name, version, snapshotId, manifest, bundleSha256, createdAt };
}
