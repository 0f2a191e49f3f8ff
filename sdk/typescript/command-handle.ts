// Owns what a caller holds of a command: its output so far, its end, and the ways to reach it.
// Refuses to own the stream (process-stream.ts). Invariant: `wait` settles once, the same way for all who wait.
import { toBytes } from './base64.ts';
import { CommandExitError } from './errors.ts';
import { type OnOutput, ProcessStream, sendInput, sendSignal } from './process-stream.ts';
import type { SandboxLink, StreamOptions, UserOptions } from './sandbox-link.ts';

export interface CommandResult {
  /** 0: a command that fails is a {@link CommandExitError}. */
  exitCode: number;
  /** All that was written; bytes that are no UTF-8 appear as U+FFFD. */
  stdout: string;
  stderr: string;
}

/** Receives output as it arrives; a promise it returns holds further output back. */
export type OutputListener = (text: string) => void | Promise<void>;

export interface OutputListeners {
  onStdout?: OutputListener | undefined;
  onStderr?: OutputListener | undefined;
}

/** Collects both channels: a character that is cut by a chunk's border waits for its other half. */
class Output {
  readonly text = { stdout: '', stderr: '' };
  readonly #decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
  readonly #listeners: OutputListeners;

  constructor(listeners: OutputListeners) {
    this.#listeners = listeners;
  }

  readonly take: OnOutput = async (name, bytes) => {
    if (name !== 'pty') await this.#pass(name, this.#decoders[name].decode(bytes, { stream: true }));
  };

  async flush(): Promise<void> {
    for (const name of ['stdout', 'stderr'] as const) await this.#pass(name, this.#decoders[name].decode());
  }

  async #pass(name: 'stdout' | 'stderr', text: string): Promise<void> {
    if (text === '') return;
    this.text[name] += text;
    await (name === 'stdout' ? this.#listeners.onStdout : this.#listeners.onStderr)?.(text);
  }
}

/** A command that runs in a sandbox, or ran. It outlives this handle. */
export class CommandHandle {
  readonly #link: SandboxLink;
  readonly #stream: ProcessStream;
  readonly #output: Output;
  readonly #result: Promise<CommandResult>;
  #exitCode: number | undefined;

  private constructor(link: SandboxLink, stream: ProcessStream, output: Output) {
    this.#link = link;
    this.#stream = stream;
    this.#output = output;
    this.#result = this.#settle();
    this.#result.catch(() => {});
  }

  /** @internal */
  static async open(
    link: SandboxLink,
    method: 'Start' | 'Connect',
    message: object,
    options: StreamOptions & OutputListeners,
  ): Promise<CommandHandle> {
    const output = new Output(options);
    const stream = await ProcessStream.open(link, method, message, options, output.take);
    return new CommandHandle(link, stream, output);
  }

  /** Process id inside the sandbox. */
  get pid(): number {
    return this.#stream.pid;
  }

  /** What has been written so far, since this handle listens. */
  get stdout(): string {
    return this.#output.text.stdout;
  }

  get stderr(): string {
    return this.#output.text.stderr;
  }

  /** undefined while it runs; -1 when a signal ended it. */
  get exitCode(): number | undefined {
    return this.#exitCode;
  }

  /**
   * Waits for the end of the command.
   * @throws {@link CommandExitError} for an exit code other than 0, {@link DeadlineExceededError} when it was ended by its
   * `timeoutMs`, {@link NotFoundError} when the sandbox ended or was paused meanwhile.
   */
  wait(): Promise<CommandResult> {
    return this.#result;
  }

  /** Ends it with SIGKILL. @returns false when it had ended before. */
  kill(options: UserOptions = {}): Promise<boolean> {
    return sendSignal(this.#link, this.pid, 'SIGKILL', options);
  }

  /** Asks it to end with SIGTERM. @returns false when it had ended before. */
  terminate(options: UserOptions = {}): Promise<boolean> {
    return sendSignal(this.#link, this.pid, 'SIGTERM', options);
  }

  /** Writes to its standard input; needs `stdin: true` at its start. Resolves when the command's pipe has taken it. */
  sendStdin(data: string | Uint8Array, options: UserOptions = {}): Promise<void> {
    return sendInput(this.#link, this.pid, 'stdin', toBytes(data), options);
  }

  /** Ends its standard input. */
  async closeStdin(options: UserOptions = {}): Promise<void> {
    await this.#link.unary('process.Process/CloseStdin', { process: { pid: this.pid } }, options);
  }

  /** Stops listening; the command goes on, see {@link Commands.connect}. `wait` rejects with code `disconnected`. */
  disconnect(): void {
    this.#stream.disconnect();
  }

  async #settle(): Promise<CommandResult> {
    const { exitCode, error } = await this.#stream.ended;
    await this.#output.flush();
    this.#exitCode = exitCode;
    const result = { exitCode, ...this.#output.text };
    if (exitCode !== 0) throw new CommandExitError({ ...result, error });
    return result;
  }
}
