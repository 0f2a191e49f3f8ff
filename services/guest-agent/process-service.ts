// Owns envd's process.Process methods: their messages, and which error answers what.
// Refuses to own processes (process-table.ts) and framing (connect-json.ts).
// Invariant: the first event of a stream is `start`; a client that leaves ends nothing, its deadline does.
import { constants } from 'node:os';
import type { SandboxInit } from '../../shared/agent-protocol.ts';
import { ConnectError } from '../../shared/connect-frames.ts';
import { baseEnvironment } from './accounts.ts';
import { type Caller, workingDirectory } from './caller.ts';
import {
  bytesField,
  type Message,
  messageField,
  numberField,
  type ServerStream,
  textField,
  textListField,
  textMapField,
} from './connect-json.ts';
import type { TerminalSize } from './kernel-calls.ts';
import type {
  CommandConfig,
  CommandProgram,
  Listener,
  ProcessTable,
  RunningCommand,
} from './process-table.ts';
import type { ChildRequest, ProgramExit } from './spawn-child.ts';
import { spawnPiped } from './spawn-piped.ts';

const maxTagChars = 1024;
const maxEchoedChars = 256;
/** The kernel keeps a terminal's columns and rows in 16 bits. */
const maxTerminalCells = 65_535;
const defaultSize: TerminalSize = { cols: 80, rows: 24 };
const defaultTerminalType = 'xterm-256color';
const keepalive = { event: { keepalive: {} } };

export async function startProcess(
  table: ProcessTable,
  caller: Caller,
  sandbox: SandboxInit,
  message: Message,
  stream: ServerStream,
): Promise<void> {
  table.checkRoom();
  const config = configOf(message);
  const tag = tagOf(message);
  const streams = message.pty == null ? { stdin: message.stdin !== false } : { size: sizeOf(message) };
  const program = await spawnCommand(caller, sandbox, config, streams);
  const command = table.add(program, config, tag);
  const overdue = () => {
    if (command.exit === undefined) program.signal('SIGKILL');
    stream.end(new ConnectError('deadline_exceeded', 'the command took longer than its timeout'));
  };
  if (stream.timeoutMs > 0) {
    const timer = setTimeout(overdue, stream.timeoutMs);
    void command.ended.then(() => clearTimeout(timer));
  }
  follow(command, stream);
}

export function connectProcess(table: ProcessTable, message: Message, stream: ServerStream): void {
  const command = table.find(selectorOf(message), true);
  if (stream.timeoutMs > 0) {
    const timer = setTimeout(
      () => stream.end(new ConnectError('deadline_exceeded', 'the stream took longer than its timeout')),
      stream.timeoutMs,
    );
    void command.ended.then(() => clearTimeout(timer));
  }
  follow(command, stream);
}

function follow(command: RunningCommand, stream: ServerStream): void {
  const listener: Listener = {
    output: (name, chunk) => stream.send({ event: { data: { [name]: chunk.toString('base64') } } }),
    end: (exit) => {
      stream.send({ event: { end: endEvent(exit) } });
      stream.end();
    },
  };
  stream.onDrain = () => command.resume(listener);
  stream.onGone = () => command.detach(listener);
  stream.send({ event: { start: { pid: command.pid } } });
  stream.keepAliveWith(keepalive);
  if (!stream.ended) command.attach(listener);
}

export function listProcesses(table: ProcessTable): object {
  return {
    processes: table.running.map(({ config, pid, tag }) => ({ config, pid, ...(tag ? { tag } : {}) })),
  };
}

export async function sendInput(table: ProcessTable, message: Message): Promise<object> {
  await writeInput(table.find(selectorOf(message)), message);
  return {};
}

/** Input whose messages keep their order, over one call. */
export async function streamInput(table: ProcessTable, messages: AsyncIterable<Message>): Promise<object> {
  let command: RunningCommand | undefined;
  for await (const message of messages) {
    if (command === undefined) {
      if (message.start == null) throw invalid('the first message must be start');
      command = table.find(selectorOf(messageField(message, 'start')));
    } else if (message.data != null) await writeInput(command, messageField(message, 'data'));
    else if (message.keepalive == null) throw invalid('expected data or keepalive');
  }
  if (command === undefined) throw invalid('the stream has no start');
  return {};
}

async function writeInput(command: RunningCommand, message: Message): Promise<void> {
  const input = messageField(message, 'input');
  const name = input.pty == null ? 'stdin' : 'pty';
  await command.write(bytesField(input, name), name);
}

export function closeStdin(table: ProcessTable, message: Message): object {
  table.find(selectorOf(message)).closeStdin();
  return {};
}

const signals: Record<string, NodeJS.Signals> = {
  SIGNAL_SIGKILL: 'SIGKILL',
  '9': 'SIGKILL',
  SIGNAL_SIGTERM: 'SIGTERM',
  '15': 'SIGTERM',
};

export function sendSignal(table: ProcessTable, message: Message): object {
  const signal = signals[String(message.signal)];
  if (signal === undefined)
    throw new ConnectError('invalid_argument', 'signal must be SIGNAL_SIGTERM or SIGNAL_SIGKILL');
  table.find(selectorOf(message)).signal(signal);
  return {};
}

export function updateProcess(table: ProcessTable, message: Message): object {
  const command = table.find(selectorOf(message));
  if (message.pty != null) command.resize(sizeOf(message));
  return {};
}

const invalid = (message: string) => new ConnectError('invalid_argument', message);

function selectorOf(message: Message): number | string {
  const selector = messageField(message, 'process');
  return selector.tag == null ? numberField(selector, 'pid') : textField(selector, 'tag');
}

function tagOf(message: Message): string | undefined {
  const tag = textField(message, 'tag');
  if (tag.length > maxTagChars) throw invalid(`tag may have ${maxTagChars} characters`);
  return tag || undefined;
}

function sizeOf(message: Message): TerminalSize {
  const pty = messageField(message, 'pty');
  if (pty.size == null) return defaultSize;
  const size = messageField(pty, 'size');
  const [cols, rows] = [numberField(size, 'cols'), numberField(size, 'rows')];
  for (const count of [cols, rows])
    if (count < 0 || count > maxTerminalCells)
      throw invalid(`cols and rows must be 0 to ${maxTerminalCells}`);
  return { cols, rows };
}

function configOf(message: Message): CommandConfig {
  const process = messageField(message, 'process');
  const cmd = textField(process, 'cmd');
  if (cmd === '') throw new ConnectError('invalid_argument', 'process.cmd is missing');
  const cwd = textField(process, 'cwd');
  return {
    cmd,
    args: textListField(process, 'args'),
    envs: textMapField(process, 'envs'),
    ...(cwd === '' ? {} : { cwd }),
  };
}

async function spawnCommand(
  caller: Caller,
  sandbox: SandboxInit,
  config: CommandConfig,
  streams: { stdin: boolean } | { size: TerminalSize },
): Promise<CommandProgram> {
  const { account } = caller;
  const cwd = await workingDirectory(caller, config.cwd ?? '');
  const argv = [config.cmd, ...config.args];
  const env = { ...baseEnvironment(account), ...sandbox.envVars, ...config.envs };
  try {
    if ('size' in streams) return await onTerminal({ argv, cwd, env, account }, streams.size);
    const { stdout, stderr, stdin, ...program } = await spawnPiped({ argv, cwd, env, account, ...streams });
    return { ...program, outputs: { stdout, stderr }, input: { name: 'stdin', sink: stdin } };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new ConnectError(
      code !== undefined && exhausted.has(code) ? 'resource_exhausted' : 'invalid_argument',
      `cannot start ${config.cmd.slice(0, maxEchoedChars)}: ${code ?? message}`,
    );
  }
}

const exhausted = new Set(['EAGAIN', 'EMFILE', 'ENFILE', 'ENOMEM', 'ENOSPC']);

async function onTerminal(request: ChildRequest, size: TerminalSize): Promise<CommandProgram> {
  const { spawnTerminal } = await import('./spawn-terminal.ts');
  const env = { TERM: defaultTerminalType, ...request.env };
  const { terminal, ...program } = await spawnTerminal({ ...request, env }, size);
  return { ...program, outputs: { pty: terminal }, input: { name: 'pty', sink: terminal } };
}

// Go's words, which clients show and compare.
const signalWords: Partial<Record<NodeJS.Signals, string>> = {
  SIGHUP: 'hangup',
  SIGINT: 'interrupt',
  SIGQUIT: 'quit',
  SIGILL: 'illegal instruction',
  SIGTRAP: 'trace/breakpoint trap',
  SIGABRT: 'aborted',
  SIGBUS: 'bus error',
  SIGFPE: 'floating point exception',
  SIGKILL: 'killed',
  SIGUSR1: 'user defined signal 1',
  SIGSEGV: 'segmentation fault',
  SIGUSR2: 'user defined signal 2',
  SIGPIPE: 'broken pipe',
  SIGALRM: 'alarm clock',
  SIGTERM: 'terminated',
};

export function endEvent({ exitCode, signal }: ProgramExit): object {
  if (signal !== null) {
    const status = `signal: ${signalWords[signal] ?? `signal ${constants.signals[signal]}`}`;
    return { exitCode: -1, exited: false, status, error: status };
  }
  const status = `exit status ${exitCode}`;
  return { exitCode, exited: true, status, ...(exitCode === 0 ? {} : { error: status }) };
}
