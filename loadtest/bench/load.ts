// Owns one burst of load by autocannon, in a process of its own: the load must not share a thread with what it loads.
// Invariant: an answer that is not a success, or none, is counted; a burst without answers is an error.
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const program = join(import.meta.dirname, '../../node_modules/autocannon/autocannon.js');

export interface Load {
  url: string;
  connections: number;
  seconds: number;
}

export interface LoadResult {
  requests: number;
  requestsPerSecond: number;
  p50Ms: number;
  p99Ms: number;
  errors: number;
}

export async function applyLoad({ url, connections, seconds }: Load): Promise<LoadResult> {
  const args = ['--json', '--no-progress', '--connections', String(connections)];
  const { stdout } = await run(process.execPath, [program, ...args, '--duration', String(seconds), url], {
    timeout: (seconds + 30) * 1_000,
  });
  const result = JSON.parse(stdout) as {
    requests: { total: number };
    latency: { p50: number; p99: number };
    duration: number;
    errors: number;
    timeouts: number;
    non2xx: number;
  };
  if (result.requests.total === 0) throw new Error(`${url} answered nothing`);
  return {
    requests: result.requests.total,
    requestsPerSecond: result.requests.total / result.duration,
    p50Ms: result.latency.p50,
    p99Ms: result.latency.p99,
    errors: result.errors + result.timeouts + result.non2xx,
  };
}
