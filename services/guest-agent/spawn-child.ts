// Owns starting one child as a user of the guest, at the head of a process group, and signalling that group.
// Refuses to own what its standard streams are (spawn-piped.ts, spawn-terminal.ts).
// Invariant: a child has its account's user, group and supplementary groups, or none was started.
import { type ChildProcess, spawn } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Account } from './accounts.ts';

export interface ProgramExit {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
}

export interface ChildRequest {
  argv: readonly string[];
  cwd: string;
  env: Record<string, string>;
  account: Account;
}

export interface Child {
  pid: number;
  exited: Promise<ProgramExit>;
  /** Signals the whole group. @returns false when the child has ended. */
  signal(signal: NodeJS.Signals): boolean;
}

export type ChildStdio = ('ignore' | number)[];

/**
 * @param wrapper a program that makes the child the head of its group and then becomes it; absent: Node makes it one.
 * @throws Error with a `code` such as ENOENT when the program cannot be started.
 */
export async function spawnChild(
  request: ChildRequest,
  stdio: ChildStdio,
  wrapper?: readonly string[],
): Promise<Child> {
  const { account } = request;
  const identity = account.switches && account.groups.length > 0 ? setpriv(account) : [];
  const argv = [...identity, ...(wrapper ?? []), ...request.argv];
  // A wrapper would only say on the program's stderr that there is no such program.
  if (argv.length > request.argv.length) await findProgram(request);
  const child = spawn(argv[0]!, argv.slice(1), {
    cwd: request.cwd,
    env: request.env,
    stdio,
    detached: wrapper === undefined,
    ...(account.switches && identity.length === 0 ? { uid: account.uid, gid: account.gid } : {}),
  });
  const exited = new Promise<ProgramExit>((settle) =>
    child.once('exit', (exitCode, signal) => settle({ exitCode, signal })),
  );
  await new Promise<void>((started, reject) => child.once('spawn', started).once('error', reject));
  child.on('error', () => {});
  return { pid: child.pid!, exited, signal: (signal) => signalGroup(child, signal) };
}

/** Node drops supplementary groups when it changes the user; setpriv keeps those of the database. */
const setpriv = ({ uid, gid, groups }: Account): string[] => [
  'setpriv',
  `--reuid=${uid}`,
  `--regid=${gid}`,
  `--groups=${groups.join(',')}`,
  '--',
];

/** @throws Error with a `code` when no program of the name can be executed. */
async function findProgram({ argv, cwd, env }: ChildRequest): Promise<void> {
  const name = argv[0]!;
  const found = (path: string) => stat(path).then((facts) => facts.isFile() && (facts.mode & 0o111) !== 0);
  if (name.includes('/')) {
    if (await found(resolve(cwd, name))) return;
    throw Object.assign(new Error(`${name} is not executable`), { code: 'EACCES' });
  }
  for (const directory of (env.PATH ?? '').split(':'))
    if (await found(join(directory || cwd, name)).catch(() => false)) return;
  throw Object.assign(new Error(`no program ${name} in PATH`), { code: 'ENOENT' });
}

function signalGroup(child: ChildProcess, signal: NodeJS.Signals): boolean {
  if (child.exitCode !== null || child.signalCode !== null) return false;
  // A wrapper may not have made its group yet: then the child alone is all there is.
  return sendSignal(-child.pid!, signal) || sendSignal(child.pid!, signal);
}

/** @returns false when there is no such process or group. */
export function sendSignal(pid: number, signal: NodeJS.Signals): boolean {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    return false;
  }
}
