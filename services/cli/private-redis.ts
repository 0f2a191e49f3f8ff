// Owns the redis-server of one data directory: on a unix socket only, with an append-only file, restarted a bounded
// number of times, ended last. Refuses to own what is stored in it.
// Invariant: it never listens on the network, a Ctrl-C of the terminal does not reach it, and `stop` leaves no process.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir, open, rm } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { Redis } from 'ioredis';
import type { Paths } from '../../pool/host/paths.ts';
import { killRecorded, readProcessRecord, recordProcess } from '../../pool/host/process-table.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';

/** Replaying a large append-only file takes its time. */
const startTimeoutMs = 60_000;
const probeMs = 20;
const stopTimeoutMs = 10_000;
/** A server that dies more often than this within a minute has something that a restart does not cure. */
const maxRestartsPerMinute = 5;
const restartPauseMs = 200;

export interface PrivateRedis {
  readonly socketPath: string;
  readonly pid: number;
  readonly restarts: number;
  stop(): Promise<void>;
}

/** @throws ThawError `missing-package` | `state-unavailable`. */
export async function startPrivateRedis(
  paths: Paths,
  log: Log,
  program = 'redis-server',
): Promise<PrivateRedis> {
  await mkdir(paths.redisDir, { recursive: true, mode: 0o700 });
  const server = new SupervisedRedis(paths, log, program);
  await server.start();
  return server;
}

class SupervisedRedis implements PrivateRedis {
  readonly socketPath: string;
  readonly #paths: Paths;
  readonly #log: Log;
  readonly #program: string;
  #child: ChildProcess | undefined;
  #stopping = false;
  #restartsAtMs: number[] = [];
  restarts = 0;

  constructor(paths: Paths, log: Log, program: string) {
    this.#paths = paths;
    this.#log = log;
    this.#program = program;
    this.socketPath = paths.redisSocket;
  }

  get pid(): number {
    return this.#child?.pid ?? 0;
  }

  async start(): Promise<void> {
    await this.#endEarlierRun();
    await rm(this.socketPath, { force: true });
    const child = await this.#spawn();
    this.#child = child;
    await recordProcess(this.#paths.redisDir, child.pid!, this.#program, { leadsGroup: true });
    let ended = false;
    child.once('exit', () => {
      ended = true;
    });
    try {
      await answering(this.socketPath, () => ended);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
    child.once('exit', (code, signal) => void this.#died(signal ?? `exit code ${code}`));
    // It may have ended between its answer and the line above.
    if (ended) void this.#died('at once');
  }

  async #spawn(): Promise<ChildProcess> {
    const { redisDir } = this.#paths;
    const output = await open(`${redisDir}/redis.log`, 'a', 0o600);
    const args = [
      '--port',
      '0',
      '--unixsocket',
      this.socketPath,
      '--unixsocketperm',
      '700',
      '--dir',
      redisDir,
    ];
    args.push('--daemonize', 'no', '--appendonly', 'yes', '--appendfsync', 'everysec', '--save', '');
    try {
      // A group of its own: a Ctrl-C at the terminal reaches Thaw, which still needs Redis to drain.
      const child = spawn(this.#program, args, { stdio: ['ignore', output.fd, output.fd], detached: true });
      await new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve);
        child.once('error', reject);
      });
      return child;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT')
        throw new ThawError('missing-package', `${this.#program} is missing: apt-get install redis-server`);
      throw error;
    } finally {
      await output.close();
    }
  }

  /** After a kill -9 of Thaw its Redis still runs on our files; two of them would spoil the append-only file. */
  async #endEarlierRun(): Promise<void> {
    const { redisDir } = this.#paths;
    const record = await readProcessRecord(redisDir);
    if (record === undefined) return;
    const ended = await killRecorded(record, redisDir);
    if (ended.length > 0) this.#log.warn({ pids: ended }, 'ended the redis-server of an earlier run');
  }

  async #died(how: string): Promise<void> {
    if (this.#stopping) return;
    const nowMs = performance.now();
    this.#restartsAtMs = this.#restartsAtMs.filter((atMs) => nowMs - atMs < 60_000);
    if (this.#restartsAtMs.length >= maxRestartsPerMinute) {
      this.#log.error({ how }, 'redis-server keeps ending and is not started again; see redis/redis.log');
      return;
    }
    this.#restartsAtMs.push(nowMs);
    this.restarts++;
    this.#log.error({ how, restarts: this.restarts }, 'redis-server ended; starting it again');
    await delay(restartPauseMs);
    if (this.#stopping) return;
    await this.start().catch((error: Error) => this.#died(error.message));
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise<boolean>((resolve) => child.once('exit', () => resolve(true)));
    // SIGTERM makes redis-server flush its append-only file and end, like SHUTDOWN.
    child.kill('SIGTERM');
    const inTime = await Promise.race([ended, delay(stopTimeoutMs, false, { ref: false })]);
    if (inTime) return;
    this.#log.error({ pid: child.pid }, 'redis-server did not end in time and was killed');
    child.kill('SIGKILL');
    await ended;
  }
}

async function answering(socketPath: string, hasEnded: () => boolean): Promise<void> {
  const deadlineMs = performance.now() + startTimeoutMs;
  while (performance.now() < deadlineMs) {
    if (hasEnded())
      throw new ThawError(
        'state-unavailable',
        'redis-server ended at its start; see redis/redis.log below the data directory',
      );
    if (await answersPing(socketPath)) return;
    // redis-server tells nobody when it is ready; the socket is there before the data is loaded.
    await delay(probeMs);
  }
  throw new ThawError('deadline-exceeded', `redis-server did not answer within ${startTimeoutMs} ms`);
}

async function answersPing(socketPath: string): Promise<boolean> {
  const redis = new Redis({
    path: socketPath,
    lazyConnect: true,
    retryStrategy: () => null,
    connectTimeout: 1_000,
  });
  redis.on('error', () => {});
  try {
    await redis.connect();
    return (await redis.ping()) === 'PONG';
  } catch {
    return false;
  } finally {
    redis.disconnect();
  }
}
