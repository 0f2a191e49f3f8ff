// Owns a real redis-server for one test file: on a unix socket in a directory of its own, and on a port of loopback for
// those who need an address; nothing kept on disk.
// Invariant: `stop` leaves neither process nor directory.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';

export interface RedisForTests {
  socketPath: string;
  /** `redis://127.0.0.1:PORT`; only when a port was asked for. */
  url: string | undefined;
  /** Ends the server; `start` brings an empty one back on the same socket. */
  kill(): Promise<void>;
  start(): Promise<void>;
  stop(): Promise<void>;
}

/** @param port of loopback; none when absent. */
export async function startRedis(port = 0): Promise<RedisForTests> {
  const dir = await mkdtemp(join(tmpdir(), 'thaw-redis-'));
  const socketPath = join(dir, 'redis.sock');
  let server: ChildProcess | undefined;
  const kill = async () => {
    const ending = server;
    server = undefined;
    if (ending === undefined || ending.exitCode !== null) return;
    const ended = new Promise((resolve) => ending.once('exit', resolve));
    ending.kill('SIGKILL');
    await ended;
  };
  const start = async () => {
    server = await launch(dir, socketPath, port);
  };
  await start();
  return {
    socketPath,
    url: port === 0 ? undefined : `redis://127.0.0.1:${port}`,
    kill,
    start,
    stop: async () => {
      await kill();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

async function launch(dir: string, socketPath: string, port: number): Promise<ChildProcess> {
  const args = [
    '--bind',
    '127.0.0.1',
    '--port',
    String(port),
    '--unixsocket',
    socketPath,
    '--dir',
    dir,
    '--save',
    '',
    '--appendonly',
    'no',
  ];
  const server = spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ready = new Promise<void>((resolve, reject) => {
    server.once('error', () =>
      reject(new ThawError('missing-package', 'these tests need redis-server: apt-get install redis-server')),
    );
    server.once('exit', (code) => reject(new Error(`redis-server ended with ${code}`)));
    createInterface({ input: server.stdout! }).on('line', (line) => {
      if (line.includes('ready to accept connections')) resolve();
    });
  });
  await withDeadline('starting redis-server', 10_000, ready);
  return server;
}
