// Owns the state store over Redis: loading it into memory and keeping memory up to date by change messages.
// Invariant: memory is loaded in full before `connectState` returns and again after every reconnection, because
// messages sent meanwhile are lost; a Redis that came back empty is filled from memory, not believed.
import { randomUUID } from 'node:crypto';
import { type Log, silentLog } from '../../../shared/log.ts';
import { RedisFunctionStore } from './function-store.ts';
import { RedisKeyStore } from './key-store.ts';
import { type RedisAddress, RedisLink, redisKeys } from './redis-link.ts';
import { RedisSandboxStore } from './sandbox-store.ts';
import type { StateStore } from './state-store.ts';
import { RedisTemplateStore } from './template-store.ts';

const resyncPauseMs = 1_000;

/** Connects and loads. @throws ThawError `state-unavailable`. */
export async function connectState(address: RedisAddress, log: Log = silentLog): Promise<StateStore> {
  const state = new RedisState(address, log);
  await state.open();
  return state;
}

class RedisState implements StateStore {
  readonly functions: RedisFunctionStore;
  readonly sandboxes: RedisSandboxStore;
  readonly templates: RedisTemplateStore;
  readonly keys: RedisKeyStore;
  readonly #link: RedisLink;
  readonly #log: Log;
  /** Names this content of Redis; another one means that Redis was wiped. */
  #epoch: string | undefined;
  #synchronised = false;
  #resync: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(address: RedisAddress, log: Log) {
    this.#log = log;
    this.#link = new RedisLink(address, log);
    this.functions = new RedisFunctionStore(this.#link);
    this.sandboxes = new RedisSandboxStore(this.#link);
    this.templates = new RedisTemplateStore(this.#link);
    this.keys = new RedisKeyStore(this.#link);
  }

  get connected(): boolean {
    return this.#synchronised && this.#link.connected;
  }

  async open(): Promise<void> {
    await this.#link.open();
    try {
      await this.#synchronise();
    } catch (error) {
      this.#link.close();
      throw error;
    }
    this.#link.onLost(() => this.#lost());
    this.#link.onReconnected(() => this.#reconnected());
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#link.close();
    await this.#resync;
  }

  #lost(): void {
    if (this.#synchronised && !this.#closed) this.#log.warn('redis is lost: serving from memory');
    this.#synchronised = false;
  }

  #reconnected(): void {
    this.#resync = this.#resync
      .then(() => this.#synchronise())
      .then(
        () => this.#log.info('redis is back'),
        (error: Error) => this.#resyncFailed(error),
      );
  }

  /** A broken connection calls `#reconnected` when it is back; a slow Redis is asked again. */
  #resyncFailed(error: Error): void {
    this.#log.warn({ reason: error.message }, 'reading the state from redis failed');
    if (this.#link.connected && !this.#closed)
      setTimeout(() => this.#closed || this.#reconnected(), resyncPauseMs).unref();
  }

  async #synchronise(): Promise<void> {
    await this.#link.subscribe((message) => this.#follow(message));
    const epoch = await this.#link.run(async (redis) => {
      await redis.setnx(redisKeys.epoch, randomUUID());
      return redis.get(redisKeys.epoch);
    });
    if (this.#epoch !== undefined && epoch !== this.#epoch) await this.#refill();
    this.#epoch = epoch ?? undefined;
    await this.sandboxes.flushRemovals();
    const parts = [this.functions, this.sandboxes, this.templates, this.keys];
    await Promise.all(parts.map((part) => part.reloadAll()));
    this.#synchronised = true;
  }

  async #refill(): Promise<void> {
    this.#log.warn('redis came back without its data: writing it again from memory');
    await this.functions.restoreToRedis();
    await this.sandboxes.restoreToRedis();
    await this.templates.restoreToRedis();
    await this.keys.restoreToRedis();
  }

  #follow(message: string): void {
    const [kind, id = ''] = message.split(' ', 2);
    const reload =
      kind === 'function'
        ? this.functions.reload(id)
        : kind === 'sandbox'
          ? this.sandboxes.reload(id)
          : kind === 'template'
            ? this.templates.reload(id)
            : this.keys.reloadAll();
    // Memory may now be behind: everything is read again.
    reload.catch((error: Error) => this.#resyncFailed(error));
  }
}
