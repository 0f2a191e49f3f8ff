// Owns running one command in a sandbox: envd's process Start, spoken as Connect in JSON through the gateway.
// Invariant: output is passed on in the order and as fast as the reader takes it; a stream that ends without the
// command's end is an error, never success.
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { agentPort } from '../../shared/agent-protocol.ts';
import { encodeFrame, endFlag, type Frame, FrameDecoder } from '../../shared/connect-frames.ts';
import type { ApiClient } from './api-client.ts';
import { ApiError } from './failure.ts';

export interface ExecRequest {
  sandboxId: string;
  command: string[];
  cwd?: string | undefined;
  user?: string | undefined;
  env: Record<string, string>;
}

interface StartEvent {
  event?: {
    data?: { stdout?: string; stderr?: string };
    end?: { exitCode?: number; exited?: boolean; status?: string };
  };
}

/** Output comes in chunks far below this. */
const maxFrameBytes = 8 * 1024 * 1024;
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
  const response = await client.open('/process.Process/Start', {
    method: 'POST',
    headers: {
      'content-type': 'application/connect+json',
      'connect-protocol-version': '1',
      'e2b-sandbox-id': sandboxId,
      'e2b-sandbox-port': String(agentPort),
      ...(envdAccessToken ? { 'x-access-token': envdAccessToken } : {}),
      ...(user ? { authorization: `Basic ${Buffer.from(`${user}:`).toString('base64')}` } : {}),
    },
    body: encodeFrame({ process: { cmd, args, envs: env, ...(cwd ? { cwd } : {}) }, stdin: false }),
    headersTimeoutMs,
  });
  const decoder = new FrameDecoder(maxFrameBytes);
  let exitCode: number | undefined;
  for await (const chunk of response.body as AsyncIterable<Buffer>)
    for (const frame of decoder.push(chunk)) exitCode = (await handle(frame, streams)) ?? exitCode;
  if (exitCode === undefined)
    throw new ApiError(502, 'guest-unreachable', 'the sandbox ended before the command did', undefined);
  return exitCode;
}

async function handle(
  frame: Frame,
  streams: { stdout: Writable; stderr: Writable },
): Promise<number | undefined> {
  if ((frame.flag & endFlag) !== 0) {
    const { error } = frame.message as { error?: { code: string; message: string } };
    if (error) throw new ApiError(400, error.code, error.message, undefined);
    return undefined;
  }
  const { event } = frame.message as StartEvent;
  for (const name of ['stdout', 'stderr'] as const) {
    const text = event?.data?.[name];
    if (text && !streams[name].write(Buffer.from(text, 'base64'))) await once(streams[name], 'drain');
  }
  if (event?.end === undefined) return undefined;
  const { exitCode = 0, exited } = event.end;
  if (exited !== false) return exitCode;
  streams.stderr.write(`thaw: the command was ended: ${event.end.status}\n`);
  return 128;
}
