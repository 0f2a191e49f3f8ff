// Owns the commands of a sandbox: started, listened to, signalled, remembered for a while after their end.
// Refuses to own the wire form of their events (process-service.ts).
// Invariant: output waits for the slowest listener and is dropped while nobody listens: memory stays bounded either way.
import type { Readable, Writable } from 'node:stream';
import { ConnectError } from '../../shared/connect-frames.ts';
import type { TerminalSize } from './kernel-calls.ts';
import type { Child, ProgramExit } from './spawn-child.ts';

export interface CommandConfig {
  cmd: string;
  args: string[];
  envs: Record<string, string>;
  cwd?: string;
}

export type OutputName = 'stdout' | 'stderr' | 'pty';
export type InputName = 'stdin' | 'pty';

/** A started program as the table needs it, whether on pipes or on a terminal. */
export interface CommandProgram extends Child {
  outputs: Partial<Record<OutputName, Readable>>;
  input: { name: InputName; sink: Writable | undefined };
  ended: Promise<ProgramExit>;
  /** Absent: it has no terminal. */
  resize?(size: TerminalSize): void;
}

export interface Listener {
  /** @returns false when it needs `resume` before it can take more. */
  output(stream: OutputName, chunk: Buffer): boolean;
  end(exit: ProgramExit): void;
}

const chunkBytes: Record<OutputName, number> = { stdout: 32 * 1024, stderr: 32 * 1024, pty: 16 * 1024 };
const maxInputPendingBytes = 8 * 1024 * 1024;

export class RunningCommand {
  readonly config: CommandConfig;
  readonly tag: string | undefined;
  readonly pid: number;
  readonly #program: CommandProgram;
  readonly #outputs: Readable[];
  readonly #listeners = new Set<Listener>();
  readonly #slow = new Set<Listener>();
  exit: ProgramExit | undefined;

  constructor(program: CommandProgram, config: CommandConfig, tag: string | undefined) {
    this.#program = program;
    this.#outputs = Object.values(program.outputs);
    this.pid = program.pid;
    this.config = config;
    this.tag = tag;
    for (const [name, output] of Object.entries(program.outputs))
      output.on('data', (chunk: Buffer) => this.#spread(name as OutputName, chunk));
    void program.ended.then((exit) => {
      this.exit = exit;
      for (const listener of this.#listeners) listener.end(exit);
      this.#listeners.clear();
    });
  }

  get ended(): Promise<ProgramExit> {
    return this.#program.ended;
  }

  attach(listener: Listener): void {
    if (this.exit === undefined) this.#listeners.add(listener);
    else listener.end(this.exit);
  }

  detach(listener: Listener): void {
    this.#listeners.delete(listener);
    this.resume(listener);
  }

  resume(listener: Listener): void {
    if (!this.#slow.delete(listener) || this.#slow.size > 0) return;
    for (const output of this.#outputs) output.resume();
  }

  signal(signal: NodeJS.Signals): void {
    if (!this.#program.signal(signal)) throw notFound(this.pid);
  }

  /** One that has just ended by itself is as good. */
  kill(): void {
    this.#program.signal('SIGKILL');
  }

  /** Resolves when the program's pipe or terminal has taken the bytes. */
  async write(bytes: Buffer, name: InputName): Promise<void> {
    const sink = this.#openInput(name);
    if (sink.writableLength + bytes.length > maxInputPendingBytes)
      throw new ConnectError('resource_exhausted', 'the command does not read its input');
    await new Promise<void>((resolve, reject) =>
      sink.write(bytes, (error) =>
        error ? reject(refused('the command closed its input')) : resolve(undefined),
      ),
    );
  }

  closeStdin(): void {
    this.#openInput('stdin').end();
  }

  resize(size: TerminalSize): void {
    if (this.#program.resize === undefined) throw refused('the command has no terminal');
    this.#program.resize(size);
  }

  #openInput(wanted: InputName): Writable {
    if (this.exit !== undefined) throw notFound(this.pid);
    const { name, sink } = this.#program.input;
    if (name !== wanted)
      throw refused(
        wanted === 'pty'
          ? 'the command has no terminal: send stdin'
          : 'the command has a terminal: send pty, and \u0004 for its end',
      );
    if (sink === undefined) throw refused('the command was started without standard input');
    if (!sink.writable) throw refused('the standard input is closed');
    return sink;
  }

  #spread(stream: OutputName, data: Buffer): void {
    const sizeBytes = chunkBytes[stream];
    for (let at = 0; at < data.length; at += sizeBytes) {
      const chunk = data.subarray(at, at + sizeBytes);
      for (const listener of this.#listeners) if (!listener.output(stream, chunk)) this.#slow.add(listener);
    }
    if (this.#slow.size === 0) return;
    for (const output of this.#outputs) output.pause();
  }
}

const maxCommands = 1024;
/** How long a late `Connect` still finds the end of a command. */
const endKeptMs = 30_000;

const refused = (message: string) => new ConnectError('failed_precondition', message);

const notFound = (which: number | string) =>
  new ConnectError(
    'not_found',
    `process with ${typeof which === 'number' ? 'pid' : 'tag'} ${String(which).slice(0, 64)} not found`,
  );

export class ProcessTable {
  readonly #commands = new Map<number, RunningCommand>();

  /** @throws ConnectError `resource_exhausted` when no more commands may run. */
  checkRoom(): void {
    if (this.#commands.size < maxCommands) return;
    for (const command of this.#commands.values())
      if (command.exit !== undefined) return void this.#commands.delete(command.pid);
    throw new ConnectError('resource_exhausted', `${maxCommands} commands are running`);
  }

  add(program: CommandProgram, config: CommandConfig, tag: string | undefined): RunningCommand {
    const command = new RunningCommand(program, config, tag);
    this.#commands.set(command.pid, command);
    void command.ended.then(() => {
      const forget = () => {
        if (this.#commands.get(command.pid) === command) this.#commands.delete(command.pid);
      };
      setTimeout(forget, endKeptMs).unref();
    });
    return command;
  }

  get running(): RunningCommand[] {
    return [...this.#commands.values()].filter((command) => command.exit === undefined);
  }

  /** @throws ConnectError `not_found`. Ended commands are found only when `ended` is asked for. */
  find(which: number | string, ended = false): RunningCommand {
    const candidates = typeof which === 'number' ? [this.#commands.get(which)] : [...this.#commands.values()];
    const matches = candidates.filter(
      (command) =>
        command !== undefined &&
        (command.pid === which || command.tag === which) &&
        (ended || command.exit === undefined),
    );
    const found = matches.at(-1);
    if (found === undefined) throw notFound(which);
    return found;
  }

  killAll(): void {
    for (const command of this.running) command.kill();
  }
}
