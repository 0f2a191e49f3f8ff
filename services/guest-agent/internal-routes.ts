// Owns the host's internal routes: bundle in, runner started, sandbox set up.
// Refuses to own authorisation (http-server.ts). Invariant: bodies stream or have a limit, and their fields are checked.
import { chownSync, mkdirSync, rmSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { pipeline } from 'node:stream/promises';
import type { RunnerSpec, SandboxInit } from '../../shared/agent-protocol.ts';
import { ConnectError } from '../../shared/connect-frames.ts';
import type { Account } from './accounts.ts';
import type { AgentState } from './agent-state.ts';
import {
  type Message,
  numberField,
  parseMessage,
  readBody,
  sendJson,
  textField,
  textListField,
  textMapField,
} from './connect-json.ts';
import type { FunctionRunner } from './function-runner.ts';
import { functionDirOf, type Settings } from './settings.ts';
import { spawnPiped } from './spawn-piped.ts';

const stderrTailChars = 2048;
const maxStartTimeoutMs = 15 * 60_000;

/** PUT /_thaw/bundle: the host has checked the archive; what this adds is that it is unpacked without privileges. */
export async function putBundle(
  settings: Settings,
  runner: FunctionRunner,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  await runner.stop();
  const directory = functionDirOf(settings);
  rmSync(directory, { recursive: true, force: true });
  mkdirSync(directory, { recursive: true });
  if (runner.account.switches) chownSync(directory, runner.account.uid, runner.account.gid);
  const fault = await extract(directory, runner.account, request);
  if (fault === undefined) response.writeHead(204).end();
  else sendJson(response, 400, { code: 400, message: fault });
}

async function extract(
  directory: string,
  account: Account,
  request: IncomingMessage,
): Promise<string | undefined> {
  const program = await spawnPiped({
    argv: ['tar', '--extract', '--no-same-owner', '--directory', directory],
    cwd: directory,
    env: { PATH: process.env.PATH ?? '/usr/bin:/bin' },
    account,
    stdin: true,
  });
  let complaint = '';
  program.stdout.resume();
  program.stderr.setEncoding('utf8').on('data', (text) => {
    complaint = (complaint + text).slice(-stderrTailChars);
  });
  // tar stops reading at the archive's end mark: what follows is padding, and a broken pipe then no fault.
  await pipeline(request, program.stdin!).catch(() => program.stdin!.destroy());
  const { exitCode } = await program.ended;
  if (exitCode !== 0)
    return `the archive cannot be unpacked: ${complaint.trim() || `tar ended with ${exitCode}`}`;
  return request.destroyed && !request.complete ? 'the archive ended early' : undefined;
}

/** POST /_thaw/runner */
export async function startRunner(
  { runner, state }: { runner: FunctionRunner; state: AgentState },
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const asked = runnerSpecOf(parseMessage(await readBody(request)));
  const env = asked.place === 'home' ? { ...state.inheritedEnvVars, ...asked.env } : asked.env;
  const spec = { ...asked, env };
  const gone = new AbortController();
  response.once('close', () => gone.abort());
  response.writeHead(200, { 'content-type': 'application/x-ndjson' });
  const write = (progress: object) => response.destroyed || response.write(`${JSON.stringify(progress)}\n`);
  const drained = () =>
    new Promise<void>((resolve) => response.once('drain', resolve).once('close', () => resolve()));
  try {
    await runner.start(spec, { write, drained }, gone.signal);
  } catch (error) {
    write({ type: 'failed', stage: 'start', message: (error as Error).message });
  }
  response.end();
}

const runtimes = ['node', 'python', 'command', 'listening'] as const;
const isRuntime = (word: string): word is RunnerSpec['runtime'] => runtimes.some((each) => each === word);

export function runnerSpecOf(message: Message): RunnerSpec {
  const runtime = textField(message, 'runtime');
  if (!isRuntime(runtime))
    throw new ConnectError('invalid_argument', `runtime must be one of ${runtimes.join(', ')}`);
  const place = textField(message, 'place');
  if (place !== '' && place !== 'bundle' && place !== 'home')
    throw new ConnectError('invalid_argument', 'place must be bundle or home');
  const startTimeoutMs = numberField(message, 'startTimeoutMs');
  if (startTimeoutMs < 1 || startTimeoutMs > maxStartTimeoutMs)
    throw new ConnectError('invalid_argument', `startTimeoutMs must be 1 to ${maxStartTimeoutMs}`);
  const argv = (name: string) => (message[name] === undefined ? {} : { [name]: argvField(message, name) });
  return {
    runtime,
    ...(message.entry === undefined ? {} : { entry: textField(message, 'entry') }),
    ...argv('command'),
    ...argv('build'),
    ...(place === '' ? {} : { place }),
    ...(message.port === undefined ? {} : { port: numberField(message, 'port') }),
    env: textMapField(message, 'env'),
    startTimeoutMs,
  };
}

function argvField(message: Message, name: string): string[] {
  const argv = textListField(message, name);
  if (argv.length === 0) throw new ConnectError('invalid_argument', `${name} must not be empty`);
  return argv;
}

/** POST /_thaw/init */
export async function initSandbox(
  state: AgentState,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  state.becomeSandbox(sandboxInitOf(parseMessage(await readBody(request))));
  response.writeHead(204).end();
}

function sandboxInitOf(message: Message): SandboxInit {
  const accessToken = textField(message, 'accessToken');
  const defaultUser = textField(message, 'defaultUser');
  if (accessToken === '') throw new ConnectError('invalid_argument', 'accessToken is missing');
  const workdir = textField(message, 'defaultWorkdir');
  return {
    accessToken,
    envVars: textMapField(message, 'envVars'),
    ...(defaultUser === '' ? {} : { defaultUser }),
    ...(workdir === '' ? {} : { defaultWorkdir: workdir }),
  };
}
