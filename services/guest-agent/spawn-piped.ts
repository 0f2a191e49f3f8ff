// Owns starting a program as a user, in its own process group, with real pipes.
// Refuses to own what its output means.
// Invariant: when `ended` settles the program is gone and its output has been read to the end.
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { Socket } from 'node:net';
import type { Account } from './accounts.ts';
import { makePipe, type Pipe } from './kernel-calls.ts';

export interface ProgramExit {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
}

export interface Program {
  pid: number;
  stdin: Socket | undefined;
  stdout: Socket;
  stderr: Socket;
  /** The process itself has ended; its output may still be open in a child of its own. */
  exited: Promise<ProgramExit>;
  /** Ended and all output read. */
  ended: Promise<ProgramExit>;
  /** Signals the whole group. @returns false when it has ended. */
  signal(signal: NodeJS.Signals): boolean;
}

export interface ProgramRequest {
  argv: readonly string[];
  cwd: string;
  env: Record<string, string>;
  account: Account;
  /** false: reads from /dev/null. */
  stdin: boolean;
}

/** @throws Error with a `code` such as ENOENT when the program cannot be started. */
export async function spawnPiped(request: ProgramRequest): Promise<Program> {
  const pipes: Pipe[] = [];
  try {
    // In order stdout, stderr, stdin; the first two are read here, the last one written.
    for (let count = request.stdin ? 3 : 2; count > 0; count--) pipes.push(makePipe());
    const [out, err, input] = pipes as [Pipe, Pipe, Pipe?];
    const child = spawnChild(request, input?.readFd ?? 'ignore', out.writeFd, err.writeFd);
    const exited = new Promise<ProgramExit>((resolve) =>
      child.once('exit', (exitCode, signal) => resolve({ exitCode, signal })),
    );
    await new Promise<void>((resolve, reject) => child.once('spawn', resolve).once('error', reject));
    child.on('error', () => {});
    for (const fd of [out.writeFd, err.writeFd, ...(input ? [input.readFd] : [])]) closeSync(fd);
    return programOf(child, exited, out, err, input);
  } catch (error) {
    for (const { readFd, writeFd } of pipes) {
      closeSync(readFd);
      closeSync(writeFd);
    }
    throw error;
  }
}

function spawnChild(request: ProgramRequest, ...stdio: ('ignore' | number)[]): ChildProcess {
  const { account } = request;
  let argv = request.argv;
  // Node drops supplementary groups when it changes the user; setpriv keeps those of the database.
  if (account.switches && account.groups.length > 0)
    argv = [
      'setpriv',
      `--reuid=${account.uid}`,
      `--regid=${account.gid}`,
      `--groups=${account.groups.join(',')}`,
      '--',
      ...argv,
    ];
  const plainSwitch = account.switches && account.groups.length === 0;
  return spawn(argv[0]!, argv.slice(1), {
    cwd: request.cwd,
    env: request.env,
    stdio,
    detached: true,
    ...(plainSwitch ? { uid: account.uid, gid: account.gid } : {}),
  });
}

function programOf(
  child: ChildProcess,
  exited: Promise<ProgramExit>,
  out: Pipe,
  err: Pipe,
  input: Pipe | undefined,
): Program {
  const reader = (fd: number) => new Socket({ fd, readable: true, writable: false }).on('error', () => {});
  const stdout = reader(out.readFd);
  const stderr = reader(err.readFd);
  const stdin =
    input && new Socket({ fd: input.writeFd, readable: false, writable: true }).on('error', () => {});
  const closed = (stream: Socket) => new Promise<void>((resolve) => stream.once('close', () => resolve()));
  const ended = Promise.all([exited, closed(stdout), closed(stderr)]).then(([exit]) => exit);
  void exited.then(() => stdin?.destroy());
  return {
    pid: child.pid!,
    stdin,
    stdout,
    stderr,
    exited,
    ended,
    signal: (signal) => signalGroup(child, signal),
  };
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): boolean {
  if (child.exitCode !== null || child.signalCode !== null) return false;
  try {
    process.kill(-child.pid!, signal);
    return true;
  } catch {
    return false;
  }
}
