// Owns API keys. Invariant: a key itself is neither stored nor logged, only its SHA-256; keys are long random
// words, so an unsalted fast hash gives an attacker nothing.
import { createHash, timingSafeEqual } from 'node:crypto';
import { ThawError } from '../../../shared/errors.ts';
import { changesChannel, type RedisLink, redisKeys } from './redis-link.ts';
import type { KeyStore } from './state-store.ts';

/** Twenty characters of base 36 hold 100 bits: not to be guessed. */
const keyShape = /^[\x21-\x7e]{20,256}$/;

const digestOf = (key: string): Buffer => createHash('sha256').update(key).digest();

export class RedisKeyStore implements KeyStore {
  readonly #link: RedisLink;
  #digests: Buffer[] = [];

  constructor(link: RedisLink) {
    this.#link = link;
  }

  get size(): number {
    return this.#digests.length;
  }

  async add(key: string): Promise<void> {
    if (!keyShape.test(key))
      throw new ThawError('bad-config', 'an API key needs 20 to 256 printable characters without spaces');
    await this.#set(key, JSON.stringify({ createdAt: new Date().toISOString() }));
  }

  async remove(key: string): Promise<void> {
    await this.#set(key, '');
  }

  verify(key: string): boolean {
    const digest = digestOf(key);
    let found = false;
    // Every key is compared: the time tells nothing about which one matched.
    for (const known of this.#digests) if (timingSafeEqual(known, digest)) found = true;
    return found;
  }

  async reloadAll(): Promise<void> {
    const hashes = await this.#link.run((redis) => redis.hkeys(redisKeys.apiKeys));
    this.#digests = hashes.map((hex) => Buffer.from(hex, 'hex'));
  }

  async restoreToRedis(): Promise<void> {
    const record = JSON.stringify({ createdAt: new Date().toISOString() });
    await this.#link.run(async (redis) => {
      const batch = redis.multi();
      for (const digest of this.#digests) batch.hsetnx(redisKeys.apiKeys, digest.toString('hex'), record);
      await batch.exec();
    });
  }

  async #set(key: string, record: string): Promise<void> {
    const hash = digestOf(key).toString('hex');
    await this.#link.script('set-key', [redisKeys.apiKeys], [hash, record, changesChannel]);
    await this.reloadAll();
  }
}
