// Owns bringing one sandbox to its first answer, by each client that users have: the e2b client, Thaw's SDKs for
// TypeScript and Python. Refuses to own how many and when (benchmarks/tti.ts).
// Invariant: a time is from before the create to the output of `node -v`; the sandbox's end is waited for, not counted.
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { Sandbox as E2bSandbox } from 'e2b';
import { Sandbox } from '../../sdk/typescript/index.ts';
import type { Bench } from './benchmark.ts';
import type { RunningThaw } from './running-thaw.ts';

const requestTimeoutMs = 120_000;

/** @returns milliseconds. */
export type Interactive = () => Promise<number>;

interface Opened {
  commands: { run(command: string, options: { timeoutMs: number }): Promise<{ stdout: string }> };
  kill(): Promise<unknown>;
}

export const byE2b = ({ url, apiKey }: RunningThaw): Interactive =>
  timed(() => E2bSandbox.create('base', { apiKey, apiUrl: url, sandboxUrl: url, requestTimeoutMs }));

export const byTypescript = ({ url, apiKey }: RunningThaw): Interactive =>
  timed(() => Sandbox.create({ apiUrl: url, apiKey, requestTimeoutMs }));

function timed(create: () => Promise<Opened>): Interactive {
  return async () => {
    const startMs = performance.now();
    const sandbox = await create();
    try {
      const { stdout } = await sandbox.commands.run('node -v', { timeoutMs: requestTimeoutMs });
      const elapsedMs = performance.now() - startMs;
      if (!/^v\d+\.\d+\.\d+\n$/.test(stdout)) throw new Error(`node -v answered ${JSON.stringify(stdout)}`);
      return elapsedMs;
    } finally {
      await sandbox.kill();
    }
  };
}

/** One Python for all of them: its own start is no part of a sandbox's. */
export function byPython(bench: Bench, { url, apiKey }: RunningThaw): Interactive {
  const child = spawn('python3', [join(import.meta.dirname, 'interactive_python.py')], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: {
      ...process.env,
      THAW_API_URL: url,
      THAW_API_KEY: apiKey,
      PYTHONPATH: join(import.meta.dirname, '../../sdk/python'),
      PYTHONDONTWRITEBYTECODE: '1',
    },
  });
  bench.cleanup.defer('Python', () => void child.stdin.end());
  return askEach(child);
}

interface Answer {
  id: string;
  ms?: number;
  error?: string;
}

function askEach(child: ChildProcessByStdio<Writable, Readable, null>): Interactive {
  const waiting = new Map<string, PromiseWithResolvers<number>>();
  createInterface({ input: child.stdout }).on('line', (line) => {
    const { id, ms, error } = JSON.parse(line) as Answer;
    if (ms === undefined) waiting.get(id)?.reject(new Error(error));
    else waiting.get(id)?.resolve(ms);
    waiting.delete(id);
  });
  let gone: Error | undefined;
  const fail = (error: Error) => {
    gone = error;
    for (const { reject } of waiting.values()) reject(error);
  };
  child.once('error', fail);
  child.once('exit', (code) => fail(new Error(`python3 ended with ${code}`)));
  child.stdin.on('error', () => {});
  let turns = 0;
  return () => {
    if (gone !== undefined) return Promise.reject(gone);
    const id = String(++turns);
    const answer = Promise.withResolvers<number>();
    waiting.set(id, answer);
    child.stdin.write(`${id}\n`);
    return answer.promise;
  };
}
