// Owns running one command in a sandbox: envd's process Start, spoken as Connect in JSON through the gateway.
// Invariant: output is passed on in the order and as fast as the reader takes it; a stream that ends without the
// command's end is an error, never success.
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { agentPort } from '../../shared/agent-protocol.ts';
import {
  type CommandEvent,
  commandEvents,
  startHeaders,
  startMessage,
  startPath,
} from '../../shared/command-stream.ts';
import type { ApiClient } from './api-client.ts';
import { ApiError } from './failure.ts';

export interface ExecRequest {
  sandboxId: string;
  command: string[];
  cwd?: string | undefined;
  user?: string | undefined;
  env: Record<string, string>;
}

/** Headers come with the first event, as soon as the command has started. */
const headersTimeoutMs = 60_000;

/** @returns the command's exit code; 128 and above for one that a signal ended. */
export async function execInSandbox(
  client: ApiClient,
  request: ExecRequest,
  streams: { stdout: Writable; stderr: Writable },
): Promise<number> {
  const { sandboxId, command, cwd, user, env } = request;
  const { envdAccessToken } = await client.json<{ envdAccessToken: string | null }>(
    `/sandboxes/${encodeURIComponent(sandboxId)}`,
  );
  const [cmd, ...args] = command;
  const response = await client.open(startPath, {
    method: 'POST',
    headers: {
      ...startHeaders(envdAccessToken, user),
      'e2b-sandbox-id': sandboxId,
      'e2b-sandbox-port': String(agentPort),
    },
    body: startMessage({ cmd: cmd!, args, cwd, env }),
    headersTimeoutMs,
  });
  let exitCode: number | undefined;
  for await (const event of commandEvents(response.body))
    exitCode = (await handle(event, streams)) ?? exitCode;
  if (exitCode === undefined)
    throw new ApiError(502, 'guest-unreachable', 'the sandbox ended before the command did', undefined);
  return exitCode;
}

async function handle(
  event: CommandEvent,
  streams: { stdout: Writable; stderr: Writable },
): Promise<number | undefined> {
  const { error, end } = event;
  if (error) throw new ApiError(400, error.code, error.message, undefined);
  for (const name of ['stdout', 'stderr'] as const) {
    const bytes = event[name];
    if (bytes && !streams[name].write(bytes)) await once(streams[name], 'drain');
  }
  if (end === undefined || end.exited) return end?.exitCode;
  streams.stderr.write(`thaw: the command was ended: ${end.status}\n`);
  return 128;
}
