// Owns the pager as a process of its own: started detached, recorded, adopted by a later node, ended for sure.
// Refuses to own the conversation with it (pager-client.ts). Invariant: one pager per directory; before a new one is
// started the old one is dead, so that no file of it hangs.
import { spawn } from 'node:child_process';
import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { withDeadline } from '../../shared/deadline.ts';
import { type ErrorCode, ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { killRecorded, readProcessRecord, readStartTime, recordProcess } from '../host/process-table.ts';
import { unmountStale } from './fuse-mount.ts';
import { connectPager, type PagerClient } from './pager-client.ts';

export interface PagerProcessOptions {
  /** Record, socket and log of the process. */
  dir: string;
  mountDir: string;
  /** `services/pager/main.ts`. */
  program: string;
  /** Whatever else the program wants to know; given on its standard input, so secrets may be among it. */
  settings: Record<string, unknown>;
  log: Log;
  healthEveryMs?: number;
  healthTimeoutMs?: number;
}

/** Each waiting read of /dev/fuse and each notice to the kernel holds a thread; the rest do files and sockets. */
const threads = 16;
/** A program of Node and a mount: half a second, and fifty times that where the CPU is emulated. */
const startTimeoutMs = 60_000;

/** The pager that runs, or else a new one. @throws ThawError `mount-failed` | `bad-config` | `deadline-exceeded`. */
export async function openPager(
  options: PagerProcessOptions,
): Promise<{ client: PagerClient; adopted: boolean }> {
  await mkdir(options.dir, { recursive: true, mode: 0o700 });
  const adopted = await adopt(options);
  if (adopted) return { client: adopted, adopted: true };
  await endPager(options);
  await start(options);
  return { client: await connectPager(socketOf(options), clientOptions(options)), adopted: false };
}

/** Ends a pager that may be there, and what it mounted. @returns the pids that were ended. */
export async function endPager({ dir, mountDir }: { dir: string; mountDir: string }): Promise<number[]> {
  const record = await readProcessRecord(dir);
  const pids = record ? await killRecorded(record, dir) : [];
  await unmountStale(mountDir);
  return pids;
}

const socketOf = ({ dir }: PagerProcessOptions): string => join(dir, 'pager.sock');

const clientOptions = ({ dir, mountDir, log, healthEveryMs, healthTimeoutMs }: PagerProcessOptions) => ({
  log,
  kill: async () => void (await endPager({ dir, mountDir })),
  ...(healthEveryMs === undefined ? {} : { healthEveryMs }),
  ...(healthTimeoutMs === undefined ? {} : { healthTimeoutMs }),
});

async function adopt(options: PagerProcessOptions): Promise<PagerClient | undefined> {
  const record = await readProcessRecord(options.dir);
  if (!record || (await readStartTime(record.pid)) !== record.startTimeTicks) return undefined;
  const client = await connectPager(socketOf(options), clientOptions(options)).catch(() => undefined);
  const { pid, mountDir } = (await client?.hello()) ?? {};
  if (pid === record.pid && mountDir === options.mountDir) return client;
  client?.close();
  return undefined;
}

async function start(options: PagerProcessOptions): Promise<void> {
  const { dir, mountDir, program, settings } = options;
  await using errors = await open(join(dir, 'pager.stderr'), 'w', 0o600);
  // Detached, and no pipe that outlives the start: the pager goes on when this process ends.
  const child = spawn(process.execPath, [program], {
    detached: true,
    stdio: ['pipe', 'pipe', errors.fd],
    env: { ...process.env, UV_THREADPOOL_SIZE: String(threads) },
  });
  const failed = new Promise<never>((_, reject) => child.once('error', reject));
  const answer = Promise.race([firstLine(child.stdout!), failed]);
  child.stdin!.on('error', () => {});
  child.stdin!.end(
    JSON.stringify({ ...settings, mountDir, socketPath: socketOf(options), logPath: join(dir, 'pager.log') }),
  );
  try {
    if (child.pid !== undefined) await recordProcess(dir, child.pid, 'thaw pager');
    const reply = parseReply(await withDeadline('the start of the pager', startTimeoutMs, answer), dir);
    if ('error' in reply) throw new ThawError(reply.error.code, reply.error.detail);
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
  child.stdout!.destroy();
  child.unref();
}

type StartReply = { ready: true } | { error: { code: ErrorCode; detail: string } };

function parseReply(line: string, dir: string): StartReply {
  if (line === '')
    throw new ThawError('mount-failed', `the pager ended at its start; see ${join(dir, 'pager.stderr')}`);
  return JSON.parse(line) as StartReply;
}

/** '' when the stream ends without one. */
async function firstLine(stream: Readable): Promise<string> {
  let text = '';
  stream.setEncoding('utf8');
  for await (const chunk of stream) {
    text += chunk;
    if (text.includes('\n')) break;
  }
  return text.split('\n')[0] ?? '';
}
