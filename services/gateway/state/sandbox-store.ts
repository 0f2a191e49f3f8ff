// Owns sandbox records. Refuses to own the VMs: a node decides whether a sandbox lives.
// Invariant: an ended sandbox never comes back into memory, even when Redis could not be told.
import { changesChannel, type RedisLink, redisKeys } from './redis-link.ts';
import type { SandboxRecord, SandboxStore } from './state-store.ts';

/** More than can end between a Redis that lost its data and the last gateway noticing. */
const maxRememberedEnds = 10_000;

export class RedisSandboxStore implements SandboxStore {
  readonly #link: RedisLink;
  readonly #records = new Map<string, SandboxRecord>();
  /** Ended lately; another gateway's older memory must not bring them back. Ids are never reused. */
  readonly #ended = new Set<string>();
  /** Those of them that Redis has not confirmed. */
  readonly #unconfirmed = new Set<string>();

  constructor(link: RedisLink) {
    this.#link = link;
  }

  get(sandboxId: string): SandboxRecord | undefined {
    return this.#records.get(sandboxId);
  }

  list(): SandboxRecord[] {
    return [...this.#records.values()];
  }

  async create(record: SandboxRecord): Promise<void> {
    await this.#put(record, 'new');
    await this.reload(record.sandboxId);
  }

  async update(record: SandboxRecord): Promise<boolean> {
    if (this.#ended.has(record.sandboxId)) return false;
    const kept = await this.#put(record, 'existing');
    await this.reload(record.sandboxId);
    return kept === 1;
  }

  async setEnd(sandboxId: string, endAtMs: number, mode: 'set' | 'extend'): Promise<number | undefined> {
    if (this.#ended.has(sandboxId)) return undefined;
    const end = await this.#link.script(
      'set-sandbox-end',
      [redisKeys.sandboxEnds],
      [sandboxId, endAtMs, mode, changesChannel],
    );
    if (end === null) return undefined;
    await this.reload(sandboxId);
    return Number(end);
  }

  async remove(sandboxId: string): Promise<void> {
    this.#records.delete(sandboxId);
    this.#remember(sandboxId);
    await this.#confirmRemoval(sandboxId).catch(() => {
      // Redis is away: `flushRemovals` repeats it after the reconnection.
    });
  }

  async flushRemovals(): Promise<void> {
    for (const sandboxId of [...this.#unconfirmed]) await this.#confirmRemoval(sandboxId);
  }

  async reload(sandboxId: string): Promise<void> {
    const [json, end] = await this.#link.readTogether([
      ['hget', redisKeys.sandboxes, sandboxId],
      ['zscore', redisKeys.sandboxEnds, sandboxId],
    ]);
    this.#admit(sandboxId, json as string | null, end as string | null);
  }

  async reloadAll(): Promise<void> {
    const ids = await this.#link.run((redis) => redis.hkeys(redisKeys.sandboxes));
    const known = new Set(ids);
    for (const sandboxId of this.#records.keys()) if (!known.has(sandboxId)) this.#records.delete(sandboxId);
    await Promise.all(ids.map((sandboxId) => this.reload(sandboxId)));
  }

  async restoreToRedis(): Promise<void> {
    await this.#link.run(async (redis) => {
      const batch = redis.multi();
      for (const record of this.#records.values()) {
        batch.hsetnx(redisKeys.sandboxes, record.sandboxId, JSON.stringify(record));
        batch.zadd(redisKeys.sandboxEnds, 'NX', record.endAtMs, record.sandboxId);
      }
      await batch.exec();
    });
  }

  #remember(sandboxId: string): void {
    this.#unconfirmed.add(sandboxId);
    this.#ended.add(sandboxId);
    for (const oldest of this.#ended) {
      if (this.#ended.size <= maxRememberedEnds) break;
      this.#ended.delete(oldest);
    }
  }

  #put(record: SandboxRecord, mode: 'new' | 'existing'): Promise<unknown> {
    return this.#link.script(
      'put-sandbox',
      [redisKeys.sandboxes, redisKeys.sandboxEnds],
      [record.sandboxId, JSON.stringify(record), record.endAtMs, mode, changesChannel],
    );
  }

  async #confirmRemoval(sandboxId: string): Promise<void> {
    await this.#link.script(
      'remove-sandbox',
      [redisKeys.sandboxes, redisKeys.sandboxEnds],
      [sandboxId, changesChannel],
    );
    this.#unconfirmed.delete(sandboxId);
  }

  #admit(sandboxId: string, json: string | null, end: string | null): void {
    if (json === null || end === null) {
      this.#records.delete(sandboxId);
      return;
    }
    if (this.#ended.has(sandboxId)) {
      if (!this.#unconfirmed.has(sandboxId)) void this.remove(sandboxId);
      return;
    }
    this.#records.set(sandboxId, { ...(JSON.parse(json) as SandboxRecord), endAtMs: Number(end) });
  }
}
