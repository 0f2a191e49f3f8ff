// Owns starting a program on a pseudo-terminal of its own, and that terminal's size. docs/decisions/0007 says why so.
// Refuses to own what is typed or shown. Loaded only when the first terminal is asked for.
// Invariant: the program leads a session whose controlling terminal is the new one; when `ended` settles it is gone and
// its output has been read to the end.
import { closeSync, readdirSync, readFileSync } from 'node:fs';
import { ReadStream } from 'node:tty';
import { openTerminal, setTerminalSize, type TerminalSize } from './kernel-calls.ts';
import { type Child, type ChildRequest, type ProgramExit, sendSignal, spawnChild } from './spawn-child.ts';

export interface TerminalProgram extends Child {
  /** What the program shows and what is typed. */
  terminal: ReadStream;
  ended: Promise<ProgramExit>;
  /** Tells the foreground programs, too. Without effect once the terminal is closed. */
  resize(size: TerminalSize): void;
}

/** Makes itself a session's leader and its standard input the session's terminal, then becomes the program. */
const becomeLeader = ['setsid', '--ctty', '--'];

/** @throws Error with a `code` such as ENOENT when the program cannot be started. */
export async function spawnTerminal(request: ChildRequest, size: TerminalSize): Promise<TerminalProgram> {
  const owner = request.account.switches ? request.account : undefined;
  const { hostFd, programFd } = openTerminal(size, owner);
  try {
    const child = await spawnChild(request, [programFd, programFd, programFd], becomeLeader);
    return programOf(child, hostFd);
  } catch (error) {
    closeSync(hostFd);
    throw error;
  } finally {
    closeSync(programFd);
  }
}

function programOf(child: Child, hostFd: number): TerminalProgram {
  const terminal = new ReadStream(hostFd);
  // Its normal end is EIO: nobody has the other side open any more.
  terminal.on('error', () => {});
  terminal.on('end', () => terminal.destroy());
  const closed = new Promise<void>((resolve) => terminal.once('close', () => resolve()));
  return {
    ...child,
    terminal,
    ended: Promise.all([child.exited, closed]).then(([exit]) => exit),
    signal: (signal) => (signal === 'SIGKILL' ? killSession(child) : child.signal(signal)),
    resize: (size) => {
      if (!terminal.destroyed) setTerminalSize(hostFd, size);
    },
  };
}

/** A shell gives each job a group of its own: they would live on and hold the terminal. */
function killSession(child: Child): boolean {
  const members = sessionMembers(child.pid);
  const killed = child.signal('SIGKILL');
  for (const pid of members) sendSignal(pid, 'SIGKILL');
  return killed;
}

function sessionMembers(leader: number): number[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => pid !== leader && sessionOf(pid) === leader);
}

function sessionOf(pid: number): number | undefined {
  try {
    // The name in parentheses may hold anything; after it come state, parent, group, session.
    const fields = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return Number(fields.slice(fields.lastIndexOf(')') + 2).split(' ')[3]);
  } catch {
    return undefined;
  }
}
