// Owns the claim of one Thaw on its data directory, and the note in it that says who holds it and where it answers.
// Invariant: the kernel holds the claim (flock) and ends it with the process, however that dies; the note is for people
// and for the CLI, and is believed only while a process of its pid and start time lives.
import { closeSync, constants, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import koffi from 'koffi';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { readStartTime } from '../../pool/host/process-table.ts';
import { ThawError } from '../../shared/errors.ts';

const noteSchema = Type.Object({
  pid: Type.Integer({ minimum: 1 }),
  /** Clock ticks since boot: tells a process from a later one of the same pid. */
  startTimeTicks: Type.Integer(),
  startedAt: Type.String(),
  /** Where it answers; absent until it does. */
  url: Type.Optional(Type.String()),
  adminUrl: Type.Optional(Type.String()),
});
export type LockNote = Static<typeof noteSchema>;

const lockExclusive = 2;
const lockWithoutWaiting = 4;

export interface DataDirLock {
  /** The note of an earlier holder that ended without taking it away. */
  readonly leftBy: LockNote | undefined;
  /** Tells the CLI where this one answers. */
  publish(addresses: { url: string; adminUrl: string }): void;
  release(): void;
}

/** @throws ThawError `data-dir-in-use` naming the process that holds it. */
export async function lockDataDir(lockPath: string): Promise<DataDirLock> {
  const fd = openSync(lockPath, constants.O_RDWR | constants.O_CREAT, 0o600);
  const flock = koffi.load(null).func('int flock(int, int)') as (fd: number, operation: number) => number;
  if (flock(fd, lockExclusive | lockWithoutWaiting) !== 0) {
    closeSync(fd);
    const holder = readNote(lockPath);
    const who = holder === undefined ? 'another process' : `process ${holder.pid}`;
    throw new ThawError(
      'data-dir-in-use',
      `Thaw already runs on ${lockPath.replace(/\/lock$/, '')} as ${who}`,
    );
  }
  const leftBy = readNote(lockPath);
  const note: LockNote = {
    pid: process.pid,
    startTimeTicks: (await readStartTime(process.pid))!,
    startedAt: new Date().toISOString(),
  };
  const write = (text: string) => {
    ftruncateSync(fd);
    writeSync(fd, text, 0);
  };
  write(JSON.stringify(note));
  return {
    leftBy,
    publish: (addresses) => write(JSON.stringify({ ...note, ...addresses })),
    release() {
      write('');
      closeSync(fd);
    },
  };
}

/** The running holder, if there is one. */
export async function runningHolder(lockPath: string): Promise<LockNote | undefined> {
  const note = readNote(lockPath);
  if (note === undefined || (await readStartTime(note.pid)) !== note.startTimeTicks) return undefined;
  return note;
}

function readNote(lockPath: string): LockNote | undefined {
  try {
    const value: unknown = JSON.parse(readFileSync(lockPath, 'utf8'));
    return Value.Check(noteSchema, value) ? value : undefined;
  } catch {
    return undefined;
  }
}
