// Owns template records, the log lines of their builds, and the sign that a build is being worked on.
// Refuses to own what a change means (template-record.ts). Invariant: a record is replaced as a whole and only by who
// has seen the one it replaces, so tags and builds never disagree.
import { ThawError } from '../../../shared/errors.ts';
import type { TemplateRecord } from '../template-record.ts';
import { changesChannel, type RedisLink, redisKeys } from './redis-link.ts';
import type { BuildLogLine, TemplateChange, TemplateStore } from './state-store.ts';

/** Many more than can change one template at once. */
const maxTries = 50;
const logLifeSeconds = 7 * 86_400;

export class RedisTemplateStore implements TemplateStore {
  readonly #link: RedisLink;
  readonly #records = new Map<string, TemplateRecord>();

  constructor(link: RedisLink) {
    this.#link = link;
  }

  get(nameOrId: string): TemplateRecord | undefined {
    const named = this.#records.get(nameOrId);
    if (named !== undefined) return named;
    for (const record of this.#records.values()) if (record.templateId === nameOrId) return record;
    return undefined;
  }

  list(): TemplateRecord[] {
    return [...this.#records.values()].sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
  }

  async change(name: string, change: TemplateChange): Promise<TemplateRecord | undefined> {
    for (let tries = 0; tries < maxTries; tries++) {
      const known = await this.#link.run((redis) => redis.hget(redisKeys.templates, name));
      const next = change(parsed(known));
      if (next === 'unchanged') return parsed(known);
      const text = next === undefined ? '' : JSON.stringify(next);
      const args = [name, known ?? '', text, changesChannel];
      const stored = await this.#link.script('put-template', [redisKeys.templates], args);
      if (stored !== 1) continue;
      await this.reload(name);
      return next;
    }
    throw new ThawError('conflict', `template ${name} is being changed by too many at once; try again`);
  }

  async appendLog(buildId: string, lines: readonly BuildLogLine[]): Promise<void> {
    if (lines.length === 0) return;
    const key = redisKeys.templateLog(buildId);
    await this.#link.run(async (redis) => {
      const texts = lines.map((line) => JSON.stringify(line));
      await redis
        .multi()
        .rpush(key, ...texts)
        .expire(key, logLifeSeconds)
        .exec();
    });
  }

  async readLog(buildId: string, offset: number, limit: number): Promise<BuildLogLine[]> {
    const key = redisKeys.templateLog(buildId);
    const texts = await this.#link.run((redis) => redis.lrange(key, offset, offset + limit - 1));
    return texts.map((text) => JSON.parse(text) as BuildLogLine);
  }

  async forgetLog(buildId: string): Promise<void> {
    await this.#link.run((redis) => redis.del(redisKeys.templateLog(buildId)));
  }

  async hold(buildId: string, leaseMs: number): Promise<void> {
    await this.#link.run((redis) => redis.set(redisKeys.templateLease(buildId), '1', 'PX', leaseMs));
  }

  async isHeld(buildId: string): Promise<boolean> {
    return (await this.#link.run((redis) => redis.exists(redisKeys.templateLease(buildId)))) === 1;
  }

  async reload(name: string): Promise<void> {
    const record = parsed(await this.#link.run((redis) => redis.hget(redisKeys.templates, name)));
    if (record === undefined) this.#records.delete(name);
    else this.#records.set(name, record);
  }

  async reloadAll(): Promise<void> {
    const all = await this.#link.run((redis) => redis.hgetall(redisKeys.templates));
    for (const name of this.#records.keys()) if (!Object.hasOwn(all, name)) this.#records.delete(name);
    for (const [name, text] of Object.entries(all)) this.#records.set(name, parsed(text)!);
  }

  /** Writes what memory holds into a Redis that lost it; what is there already wins. */
  async restoreToRedis(): Promise<void> {
    await this.#link.run(async (redis) => {
      const batch = redis.multi();
      for (const record of this.#records.values())
        batch.hsetnx(redisKeys.templates, record.name, JSON.stringify(record));
      await batch.exec();
    });
  }
}

const parsed = (text: string | null): TemplateRecord | undefined =>
  text === null ? undefined : (JSON.parse(text) as TemplateRecord);
