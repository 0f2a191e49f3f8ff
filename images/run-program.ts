// Owns running a host program to its end while the image is built.
// Invariant: arguments are arrays; a failure carries the end of what the program said; a missing program names its package.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { ThawError } from '../shared/errors.ts';
import { buildPrograms } from './packages.ts';

const tailLines = 12;

export interface RunOptions {
  timeoutMs?: number;
  cwd?: string;
  env?: Record<string, string>;
  /** What the program reads from standard input. */
  input?: string;
  onOutput?: (line: string) => void;
}

/** @throws ThawError `missing-package` | `image-failed`. */
export async function runProgram(program: string, args: string[], options: RunOptions = {}): Promise<void> {
  const { timeoutMs = 300_000, cwd, env, input = '', onOutput } = options;
  const child = spawn(program, args, {
    cwd,
    stdio: 'pipe',
    env: { ...process.env, LC_ALL: 'C.UTF-8', ...env },
    timeout: timeoutMs,
  });
  // A program that ends early says why by its exit code.
  child.stdin.on('error', () => {}).end(input);
  const tail: string[] = [];
  for (const stream of [child.stdout, child.stderr])
    createInterface({ input: stream }).on('line', (line) => {
      tail.push(line);
      if (tail.length > tailLines) tail.shift();
      onOutput?.(line);
    });
  const how = await new Promise<string>((resolve, reject) => {
    child.once('error', (error: NodeJS.ErrnoException) =>
      reject(error.code === 'ENOENT' ? missing(program) : error),
    );
    child.once('close', (exitCode, signal) => resolve(signal ?? String(exitCode)));
  });
  if (how !== '0') throw new ThawError('image-failed', `${program} ended with ${how}:\n${tail.join('\n')}`);
}

const missing = (program: string) =>
  new ThawError(
    'missing-package',
    `${program} is not installed: apt-get install ${buildPrograms.find((needed) => needed.program === program)?.debianPackage ?? program}`,
  );
