// Owns a whole Thaw as a user starts it: `thaw up` in a process of its own, on a data directory and ports of its own.
// Invariant: `end` leaves no process; a start that fails shows what the program said.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { withDeadline } from '../../shared/deadline.ts';

const projectDir = join(import.meta.dirname, '../..');
export const cliPath = join(projectDir, 'services/cli/main.ts');
/** A first start boots a template under emulation and may share the machine. */
const startTimeoutMs = 240_000;

export interface CliResult {
  exitCode: number | null;
  stdout: string;
  stderr: string;
}

export interface ThawProcess {
  readonly dataDir: string;
  readonly url: string;
  readonly adminUrl: string;
  readonly apiKey: string;
  readonly pid: number;
  /** What it said on standard error so far. */
  readonly said: () => string;
  /** A call with the API key. */
  call(path: string, init?: RequestInit): Promise<Response>;
  /** Process ids of the VMMs of this data directory. */
  vmmPids(): Promise<number[]>;
  /** Ends it with a signal. @returns its exit code. */
  end(signal?: NodeJS.Signals): Promise<number | null>;
}

export const newDataDir = (): Promise<string> => mkdtemp(join(tmpdir(), 'thaw-up-'));

export async function startThaw(
  dataDir: string,
  args: string[] = [],
  env: NodeJS.ProcessEnv = {},
  timeoutMs = startTimeoutMs,
): Promise<ThawProcess> {
  const child = spawnCli(['up', '--json', ...args], {
    THAW_DATA_DIR: dataDir,
    THAW_PORT: '0',
    THAW_ADMIN_PORT: '0',
    ...env,
  });
  let stdout = '';
  let stderr = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const exited = new Promise<number | null>((resolve) => child.once('close', resolve));
  const up = new Promise<{ url: string; adminUrl: string }>((resolve, reject) => {
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      if (!stdout.trimEnd().endsWith('}')) return;
      const said = JSON.parse(stdout) as { url?: string; adminUrl?: string };
      // What failed is said in the same form.
      if (said.url === undefined) reject(new Error(`thaw up did not start:\n${stdout}`));
      else resolve(said as { url: string; adminUrl: string });
    });
    void exited.then((exitCode) => reject(new Error(`thaw up ended with ${exitCode}:\n${stdout}${stderr}`)));
  });
  const addresses = await withDeadline('thaw up', timeoutMs, up).catch(async (error) => {
    child.kill('SIGTERM');
    throw new Error(`${error.message}\n${stderr}\n${await errorsIn(dataDir)}`, { cause: error });
  });
  const apiKey = (await readFile(join(dataDir, 'api-key'), 'utf8')).trim();
  return {
    dataDir,
    ...addresses,
    apiKey,
    pid: child.pid!,
    said: () => stderr,
    call: (path, init = {}) =>
      fetch(`${addresses.url}${path}`, { ...init, headers: { 'x-api-key': apiKey, ...init.headers } }),
    vmmPids: () => vmmPidsOf(dataDir),
    async end(signal = 'SIGTERM') {
      child.kill(signal);
      return withDeadline('the end of thaw up', 90_000, exited);
    },
  };
}

/** What a failure's words leave out: warnings hold the cause of a version that failed. */
async function errorsIn(dataDir: string): Promise<string> {
  const text = await readFile(join(dataDir, 'thaw.log'), 'utf8').catch(() => '');
  return text
    .split('\n')
    .filter((line) => /"level":[45]0/.test(line))
    .slice(-5)
    .join('\n');
}

function spawnCli(args: string[], env: NodeJS.ProcessEnv): ChildProcess {
  return spawn(process.execPath, [cliPath, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
}

export async function runCli(args: string[], env: NodeJS.ProcessEnv): Promise<CliResult> {
  const child = spawnCli(args, env);
  const result: CliResult = { exitCode: null, stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const)
    child[name]!.setEncoding('utf8').on('data', (text: string) => {
      result[name] += text;
    });
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve));
  result.exitCode = await withDeadline(`thaw ${args[0]}`, 180_000, ended);
  return result;
}

export async function vmmPidsOf(dataDir: string): Promise<number[]> {
  const pids: number[] = [];
  for (const name of await readdir(join(dataDir, 'vms')).catch(() => [])) {
    const text = await readFile(join(dataDir, 'vms', name, 'vmm.pid'), 'utf8').catch(() => undefined);
    if (text) pids.push((JSON.parse(text) as { pid: number }).pid);
  }
  return pids;
}

/** Waits for a condition that the product brings about. */
export async function eventually<T>(
  what: string,
  probe: () => Promise<T | undefined | false>,
  timeoutMs = 30_000,
): Promise<T> {
  const endMs = performance.now() + timeoutMs;
  for (;;) {
    const found = await probe();
    if (found) return found;
    if (performance.now() > endMs) throw new Error(`${what} did not happen within ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export const removeDir = (dir: string): Promise<void> => rm(dir, { recursive: true, force: true });
