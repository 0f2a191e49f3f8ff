// Owns what happens at a start to what an earlier run left: VMM processes, run directories, half-built snapshots.
// Refuses to own what is still wanted: it runs under the data directory's lock, before anything is started.
// Invariant: a process is ended only when its record proves that it is ours; a directory goes after its process.
import { readdir, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import { unmountBelow } from './file-mounts.ts';
import type { Paths } from './paths.ts';
import { killRecorded, readProcessRecord } from './process-table.ts';

export interface Reclaimed {
  kind: 'process' | 'run-directory' | 'partial-snapshot' | 'socket';
  /** For people: which one it was. */
  what: string;
}

/** @returns everything that was cleaned up, in order. What cannot be cleaned up is logged and stays for the next start. */
export async function reclaim(options: { paths: Paths; log: Log }): Promise<Reclaimed[]> {
  const { paths, log } = options;
  const reclaimed: Reclaimed[] = [];
  const note = (kind: Reclaimed['kind'], what: string) => {
    reclaimed.push({ kind, what });
    metrics.leaksReclaimed.inc({ kind });
    log.warn({ kind, what }, 'reclaimed from an earlier run');
  };
  const attempt = async (what: string, work: () => Promise<void>) => {
    try {
      await work();
    } catch (error) {
      log.error({ err: error, what }, 'could not be reclaimed');
    }
  };
  for (const name of await entriesOf(paths.vmsDir))
    await attempt(name, () => reclaimVm(join(paths.vmsDir, name), note));
  for (const name of await entriesOf(paths.snapshotsDir))
    if (name.endsWith('.partial'))
      await attempt(name, async () => {
        await rm(join(paths.snapshotsDir, name), { recursive: true, force: true });
        note('partial-snapshot', name);
      });
  await attempt(paths.redisSocket, async () => {
    if (!(await isStale(paths.redisSocket))) return;
    await rm(paths.redisSocket, { force: true });
    note('socket', paths.redisSocket);
  });
  return reclaimed;
}

async function reclaimVm(
  runDir: string,
  note: (kind: Reclaimed['kind'], what: string) => void,
): Promise<void> {
  const record = await readProcessRecord(runDir);
  if (record)
    for (const pid of await killRecorded(record, runDir))
      note('process', `${record.program}, pid ${pid}, of ${runDir}`);
  await unmountBelow(runDir);
  await rm(runDir, { recursive: true, force: true });
  note('run-directory', runDir);
}

/** A socket file that nobody listens on. */
function isStale(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(false);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code === 'ECONNREFUSED'));
  });
}

async function entriesOf(dir: string): Promise<string[]> {
  return readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
}
