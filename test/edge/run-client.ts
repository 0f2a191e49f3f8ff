// Owns running client-by-name.ts as a user would, and what it must have seen, whatever runs the sandboxes.
// Refuses to own the server. Invariant: the program ends within its time, and what it said is in the failure.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import type { Seen } from './client-by-name.ts';

export async function runClient(
  domain: string,
  settings: Record<string, string>,
  timeoutMs: number,
): Promise<Seen> {
  const program = ['names-resolve-here.ts', 'client-by-name.ts'].map((name) =>
    join(import.meta.dirname, name),
  );
  const env = { ...process.env, THAW_TEST_DOMAIN: domain, ...settings };
  const child = spawn(process.execPath, ['--import', ...program], {
    env,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: timeoutMs,
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text) => {
    stderr += text;
  });
  await new Promise((resolve) => child.once('close', resolve));
  assert.ok(stdout.startsWith('{'), `the client's program said: ${stdout}${stderr}`);
  return JSON.parse(stdout) as Seen;
}

/** @param domain with its port. */
export function assertServed(seen: Seen, domain: string): void {
  const { sandboxId, port, host } = seen;
  assert.equal(seen.domain, domain);
  assert.equal(host, `${port}-${sandboxId}.${domain}`);
  assert.deepEqual(seen.command, ['out', 'err', 'out']);
  assert.deepEqual(seen.pieces, [`${host} https`, 'ONETWO']);
  assert.equal(seen.webSocket, 'echo hello');
  assert.deepEqual(seen.links, {
    uploadHost: `49983-${sandboxId}.${domain}`,
    statuses: [200, 200, 401, 401],
    text: 'by link',
  });
  assert.match(seen.closedPort, /port is not open/);
  assert.deepEqual([seen.running, seen.killed, seen.runningAfterwards], [true, true, false]);
  assert.deepEqual([seen.notPublic.withoutToken, seen.notPublic.withToken], [403, 200]);
}

/** A port that nobody has now: an answer of the server names it, so it has to be known before it is listened on. */
export async function freePort(): Promise<number> {
  const probe = createServer();
  await new Promise<void>((resolve) => probe.listen(0, '127.0.0.1', resolve));
  const { port } = probe.address() as AddressInfo;
  await new Promise((resolve) => probe.close(resolve));
  return port;
}
