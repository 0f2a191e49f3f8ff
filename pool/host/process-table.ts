// Owns how Thaw knows a process again: by pid, start time and boot, in a record beside what the process serves.
// Refuses to own which processes should live. Invariant: a pid alone names nothing, for the kernel gives it out again.
import { readdir, readFile, readlink, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { ThawError } from '../../shared/errors.ts';

export interface ProcessRecord {
  pid: number;
  /** Clock ticks from boot to the start of the process. */
  startTimeTicks: number;
  /** Ticks start anew at each boot. */
  bootId: string;
  /** For people who read the record. */
  program: string;
  /** The process leads a group of its own, and all of it belongs to the record. */
  leadsGroup: boolean;
}

interface Stat {
  state: string;
  groupId: number;
  startTimeTicks: number;
}

const recordName = 'vmm.pid';
/** SIGKILL takes effect within milliseconds unless the process hangs in the kernel. */
const killTimeoutMs = 5_000;
const killPollMs = 5;

/** Written at once after the spawn: a crash in between leaks the process. @throws Error when it has ended already. */
export async function recordProcess(
  runDir: string,
  pid: number,
  program: string,
  options: { leadsGroup?: boolean } = {},
): Promise<void> {
  const startTimeTicks = await readStartTime(pid);
  if (startTimeTicks === undefined)
    throw new ThawError('hypervisor-failed', `${program} ended as soon as it was started`);
  const { leadsGroup = false } = options;
  const record: ProcessRecord = { pid, startTimeTicks, bootId: await bootId(), program, leadsGroup };
  // By rename, so that a crash leaves a whole record or none.
  const partialPath = join(runDir, `${recordName}.partial`);
  await writeFile(partialPath, `${JSON.stringify(record)}\n`, { mode: 0o600 });
  await rename(partialPath, join(runDir, recordName));
}

/** @returns undefined when there is none that can be read. */
export async function readProcessRecord(runDir: string): Promise<ProcessRecord | undefined> {
  try {
    const record = JSON.parse(await readFile(join(runDir, recordName), 'utf8')) as ProcessRecord;
    // A group of 0 or 1 would be our own or every process there is.
    return Number.isInteger(record.pid) && record.pid > 1 ? record : undefined;
  } catch {
    return undefined;
  }
}

/** Field 22 of /proc/PID/stat; undefined when there is no such process, or only what its parent has yet to reap. */
export async function readStartTime(pid: number): Promise<number | undefined> {
  return (await readStat(pid))?.startTimeTicks;
}

/** Ends the recorded process, and its group where it leads one. @returns the pids that were ended. */
export async function killRecorded(record: ProcessRecord, runDir: string): Promise<number[]> {
  if (record.bootId !== (await bootId())) return [];
  const pids = new Set<number>();
  if ((await readStartTime(record.pid)) === record.startTimeTicks) pids.add(record.pid);
  if (record.leadsGroup) for (const pid of await membersOf(record, pids.size > 0, runDir)) pids.add(pid);
  for (const pid of pids) signal(pid);
  await Promise.all([...pids].map(ended));
  return [...pids];
}

/** Without its leader a group proves itself by working inside the run directory. */
async function membersOf(record: ProcessRecord, leaderLives: boolean, runDir: string): Promise<number[]> {
  const members: number[] = [];
  for (const name of await readdir('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid) || (await readStat(pid))?.groupId !== record.pid) continue;
    if (leaderLives || (await worksIn(pid, runDir))) members.push(pid);
  }
  return members;
}

async function worksIn(pid: number, dir: string): Promise<boolean> {
  const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => '');
  return `${cwd}/`.startsWith(`${dir}/`);
}

function signal(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

async function ended(pid: number): Promise<void> {
  const deadlineMs = performance.now() + killTimeoutMs;
  // The kernel tells only a parent when a process has gone; we are not its parent any more.
  while ((await readStat(pid)) !== undefined) {
    if (performance.now() > deadlineMs)
      throw new ThawError('deadline-exceeded', `process ${pid} did not end within ${killTimeoutMs} ms`);
    await delay(killPollMs);
  }
}

async function readStat(pid: number): Promise<Stat | undefined> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  // The name stands in parentheses and may hold any character: fields are counted from the last one, which ends it.
  const [state, , groupId, ...rest] = text.slice(text.lastIndexOf(')') + 2).split(' ');
  if (state === undefined || state === 'Z' || state === 'X') return undefined;
  return { state, groupId: Number(groupId), startTimeTicks: Number(rest[16]) };
}

let knownBootId: string | undefined;
async function bootId(): Promise<string> {
  knownBootId ??= (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
  return knownBootId;
}
