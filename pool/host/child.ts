// Owns starting a long-lived host program and knowing how it ended.
// Invariant: arguments are arrays, never a shell; standard error is kept to its last bytes, never unbounded.
import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process';
import type { MachineExit } from '../hypervisor/hypervisor.ts';

const stderrTailBytes = 8 * 1024;

export interface Child {
  readonly process: ChildProcess;
  readonly pid: number;
  /** Settles when the process has ended; never rejects. */
  readonly exited: Promise<MachineExit>;
}

/** @param extraStdio descriptors 3, 4, … of the child: 'pipe' is a socket pair, a number is inherited. */
export async function startChild(
  program: string,
  args: string[],
  options: { cwd?: string; env?: NodeJS.ProcessEnv; extraStdio?: ('pipe' | number)[] } = {},
): Promise<Child> {
  const stdio: StdioOptions = ['ignore', 'ignore', 'pipe', ...(options.extraStdio ?? [])];
  // A group of its own: a Ctrl-C at the terminal must reach Thaw, which drains, and not the VMs.
  const child = spawn(program, args, {
    cwd: options.cwd,
    env: options.env ?? process.env,
    stdio,
    detached: true,
  });
  let stderrTail = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderrTail = (stderrTail + text).slice(-stderrTailBytes);
  });
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', reject);
  });
  const exited = new Promise<MachineExit>((resolve) => {
    child.once('close', (exitCode, signal) => resolve({ exitCode, signal, stderrTail }));
  });
  return { process: child, pid: child.pid as number, exited };
}
