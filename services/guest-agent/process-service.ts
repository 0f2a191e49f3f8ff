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
import type { CommandConfig, Listener, ProcessTable, RunningCommand } from './process-table.ts';
import { type Program, type ProgramExit, spawnPiped } from './spawn-piped.ts';

const keepalive = { event: { keepalive: {} } };

export async function startProcess(
  table: ProcessTable,
  caller: Caller,
  sandbox: SandboxInit,
  message: Message,
  stream: ServerStream,
): Promise<void> {
  if (message.pty !== undefined && message.pty !== null) throw noPty();
  table.checkRoom();
  const config = configOf(message);
  const program = await spawnCommand(caller, sandbox, config, message.stdin !== false);
  const command = table.add(program, config, textField(message, 'tag') || undefined);
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
  const command = table.find(selectorOf(message));
  const input = messageField(message, 'input');
  if (input.pty !== undefined) throw noPty();
  await command.write(bytesField(input, 'stdin'));
  return {};
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

export function updateProcess(): never {
  throw noPty();
}

const noPty = () => new ConnectError('unimplemented', 'this version of Thaw offers no pseudo-terminals');

function selectorOf(message: Message): number | string {
  const selector = messageField(message, 'process');
  return selector.tag === undefined ? numberField(selector, 'pid') : textField(selector, 'tag');
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
  stdin: boolean,
): Promise<Program> {
  const cwd = await workingDirectory(caller, config.cwd ?? '');
  const env = { ...baseEnvironment(caller.account), ...sandbox.envVars, ...config.envs };
  try {
    return await spawnPiped({
      argv: [config.cmd, ...config.args],
      cwd,
      env,
      account: caller.account,
      stdin,
    });
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    throw new ConnectError('invalid_argument', `cannot start ${config.cmd}: ${code ?? message}`);
  }
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
