// Owns the commands of a sandbox: started, listened to, signalled, remembered for a while after their end.
// Refuses to own the wire form of their events (process-service.ts).
// Invariant: output waits for the slowest listener and is dropped while nobody listens: memory stays bounded either way.
import { ConnectError } from '../../shared/connect-frames.ts';
import type { Program, ProgramExit } from './spawn-piped.ts';

export interface CommandConfig {
  cmd: string;
  args: string[];
  envs: Record<string, string>;
  cwd?: string;
}

export interface Listener {
  /** @returns false when it needs `resume` before it can take more. */
  output(stream: 'stdout' | 'stderr', chunk: Buffer): boolean;
  end(exit: ProgramExit): void;
}

const chunkBytes = 32 * 1024;
const maxStdinPendingBytes = 8 * 1024 * 1024;

export class RunningCommand {
  readonly config: CommandConfig;
  readonly tag: string | undefined;
  readonly pid: number;
  readonly #program: Program;
  readonly #listeners = new Set<Listener>();
  readonly #slow = new Set<Listener>();
  exit: ProgramExit | undefined;

  constructor(program: Program, config: CommandConfig, tag: string | undefined) {
    this.#program = program;
    this.pid = program.pid;
    this.config = config;
    this.tag = tag;
    program.stdout.on('data', (chunk: Buffer) => this.#spread('stdout', chunk));
    program.stderr.on('data', (chunk: Buffer) => this.#spread('stderr', chunk));
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
    this.#program.stdout.resume();
    this.#program.stderr.resume();
  }

  signal(signal: NodeJS.Signals): void {
    if (!this.#program.signal(signal)) throw notFound(this.pid);
  }

  /** Resolves when the program's pipe has taken the bytes. */
  async write(bytes: Buffer): Promise<void> {
    const stdin = this.#openStdin();
    if (stdin.writableLength + bytes.length > maxStdinPendingBytes)
      throw new ConnectError('resource_exhausted', 'the command does not read its input');
    await new Promise<void>((resolve, reject) =>
      stdin.write(bytes, (error) =>
        error
          ? reject(new ConnectError('failed_precondition', 'the command closed its input'))
          : resolve(undefined),
      ),
    );
  }

  closeStdin(): void {
    this.#openStdin().end();
  }

  #openStdin() {
    const { stdin } = this.#program;
    if (stdin === undefined)
      throw new ConnectError('failed_precondition', 'the command was started without standard input');
    if (!stdin.writable) throw new ConnectError('failed_precondition', 'the standard input is closed');
    return stdin;
  }

  #spread(stream: 'stdout' | 'stderr', data: Buffer): void {
    for (let at = 0; at < data.length; at += chunkBytes) {
      const chunk = data.subarray(at, at + chunkBytes);
      for (const listener of this.#listeners) if (!listener.output(stream, chunk)) this.#slow.add(listener);
    }
    if (this.#slow.size === 0) return;
    this.#program.stdout.pause();
    this.#program.stderr.pause();
  }
}

const maxCommands = 1024;
/** How long a late `Connect` still finds the end of a command. */
const endKeptMs = 30_000;

const notFound = (which: number | string) =>
  new ConnectError(
    'not_found',
    `process with ${typeof which === 'number' ? 'pid' : 'tag'} ${which} not found`,
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

  add(program: Program, config: CommandConfig, tag: string | undefined): RunningCommand {
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
    for (const command of this.running) command.signal('SIGKILL');
  }
}
