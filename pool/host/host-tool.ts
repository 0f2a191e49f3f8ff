// Owns running a short host program to its end (ip, nft, nsenter, mknod), with what it reads on standard input.
// Invariant: arguments are arrays, never a shell; a failure carries the program's words; a missing one names its package.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { ThawError } from '../../shared/errors.ts';

const run = promisify(execFile);
const toolTimeoutMs = 20_000;

const packages: Readonly<Record<string, string>> = { ip: 'iproute2', nft: 'nftables', sysctl: 'procps' };

/** What the tool said, as the error's message says it too. */
export class ToolFailure extends Error {
  readonly stderr: string;

  constructor(command: string, stderr: string) {
    super(`${command}: ${stderr}`);
    this.name = 'ToolFailure';
    this.stderr = stderr;
  }
}

/** @throws ToolFailure | ThawError `missing-package`. */
export async function runTool(program: string, args: readonly string[], input = ''): Promise<string> {
  const running = run(program, [...args], { timeout: toolTimeoutMs, env: { PATH: toolPath() } });
  running.child.stdin?.on('error', () => {}).end(input);
  try {
    return (await running).stdout;
  } catch (error) {
    const { code, stderr } = error as { code?: string | number; stderr?: string };
    if (code === 'ENOENT')
      throw new ThawError(
        'missing-package',
        `${program} is not installed: apt-get install ${packages[program] ?? 'util-linux'}`,
      );
    throw new ToolFailure([program, ...args].join(' '), stderr?.trim() || (error as Error).message);
  }
}

/** A user's PATH often lacks the directories of administrators' programs. */
const toolPath = (): string => `${process.env.PATH ?? ''}:/usr/local/sbin:/usr/sbin:/sbin`;
