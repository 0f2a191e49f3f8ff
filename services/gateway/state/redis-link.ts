// Owns the connections to Redis: one for commands, one for change messages, both reconnecting for ever.
// Refuses to own what is stored. Invariant: a command that cannot be answered now fails at once as
// `state-unavailable`; nothing queues while Redis is away.
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Redis, type RedisOptions } from 'ioredis';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';
import type { Log } from '../../../shared/log.ts';

export type RedisAddress = { url: string } | { socketPath: string };

/** Braces keep all keys in one cluster slot, which the scripts need. */
const prefix = '{thaw}:';
export const changesChannel = `${prefix}changes`;
export const redisKeys = {
  epoch: `${prefix}epoch`,
  functions: `${prefix}functions`,
  current: `${prefix}current`,
  counters: `${prefix}version-counters`,
  versions: (name: string) => `${prefix}versions:${name}`,
  buildLease: (name: string) => `${prefix}build:${name}`,
  sandboxes: `${prefix}sandboxes`,
  sandboxEnds: `${prefix}sandbox-ends`,
  templates: `${prefix}templates`,
  templateLog: (buildId: string) => `${prefix}template-log:${buildId}`,
  templateLease: (buildId: string) => `${prefix}template-build:${buildId}`,
  apiKeys: `${prefix}api-keys`,
};

const scriptNames = [
  'begin-version',
  'extend-build',
  'finish-version',
  'put-version',
  'activate-version',
  'remove-version',
  'remove-function',
  'put-sandbox',
  'set-sandbox-end',
  'remove-sandbox',
  'put-template',
  'set-key',
] as const;
export type ScriptName = (typeof scriptNames)[number];

const scripts = new Map(
  scriptNames.map((name) => {
    const source = readFileSync(new URL(`./scripts/${name}.lua`, import.meta.url), 'utf8');
    return [name, { source, sha: createHash('sha1').update(source).digest('hex') }] as const;
  }),
);

/** A healthy Redis on the same host answers in well under a millisecond; two seconds means it does not answer. */
const commandTimeoutMs = 2_000;
const connectTimeoutMs = 5_000;

function connectionOptions(name: string): RedisOptions {
  return {
    connectionName: name,
    lazyConnect: true,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    autoResubscribe: false,
    maxRetriesPerRequest: 0,
    commandTimeout: commandTimeoutMs,
    connectTimeout: connectTimeoutMs,
    retryStrategy: (attempt) => Math.min(50 * attempt, 1_000),
  };
}

const openConnection = (address: RedisAddress, name: string): Redis =>
  'url' in address
    ? new Redis(address.url, connectionOptions(name))
    : new Redis({ path: address.socketPath, ...connectionOptions(name) });

export class RedisLink {
  readonly #commands: Redis;
  readonly #subscriber: Redis;
  readonly #log: Log;

  constructor(address: RedisAddress, log: Log) {
    this.#log = log;
    this.#commands = openConnection(address, 'thaw-gateway');
    this.#subscriber = openConnection(address, 'thaw-gateway-changes');
    for (const connection of [this.#commands, this.#subscriber])
      connection.on('error', (error: Error) =>
        this.#log.debug({ reason: error.message }, 'redis connection'),
      );
  }

  /** @throws ThawError `state-unavailable` when Redis does not answer within the connect time-out. */
  async open(): Promise<void> {
    const connected = Promise.all([this.#commands.connect(), this.#subscriber.connect()]);
    await withDeadline('connecting to Redis', connectTimeoutMs, connected).catch((error) => {
      this.close();
      throw new ThawError('state-unavailable', 'Redis does not answer; check that it runs', { cause: error });
    });
  }

  get connected(): boolean {
    return this.#commands.status === 'ready' && this.#subscriber.status === 'ready';
  }

  /** Calls back after every reconnection of either side, once both are there. */
  onReconnected(listener: () => void): void {
    for (const connection of [this.#commands, this.#subscriber])
      connection.on('ready', () => this.connected && listener());
  }

  onLost(listener: () => void): void {
    for (const connection of [this.#commands, this.#subscriber]) connection.on('close', listener);
  }

  async subscribe(listener: (message: string) => void): Promise<void> {
    this.#subscriber.removeAllListeners('message');
    this.#subscriber.on('message', (_channel: string, message: string) => listener(message));
    await this.run(() => this.#subscriber.subscribe(changesChannel));
  }

  /** Runs commands and turns every connection failure into `state-unavailable`. */
  async run<T>(work: (redis: Redis) => Promise<T>): Promise<T> {
    try {
      return await work(this.#commands);
    } catch (error) {
      if (error instanceof ThawError) throw error;
      throw new ThawError('state-unavailable', 'Redis does not answer; nothing was changed for certain', {
        cause: error,
      });
    }
  }

  /** Runs several reads as one step, so that they see one moment. */
  async readTogether(commands: string[][]): Promise<unknown[]> {
    const replies = await this.run((redis) => redis.multi(commands).exec());
    return (replies ?? []).map(([error, value]) => {
      if (error) throw new ThawError('state-unavailable', 'Redis refused a read', { cause: error });
      return value;
    });
  }

  async script(name: ScriptName, keys: string[], args: (string | number)[]): Promise<unknown> {
    const { source, sha } = scripts.get(name)!;
    return this.run(async (redis) => {
      try {
        return await redis.evalsha(sha, keys.length, ...keys, ...args);
      } catch (error) {
        if (!(error instanceof Error) || !error.message.startsWith('NOSCRIPT')) throw error;
        return await redis.eval(source, keys.length, ...keys, ...args);
      }
    });
  }

  close(): void {
    this.#commands.disconnect();
    this.#subscriber.disconnect();
  }
}
