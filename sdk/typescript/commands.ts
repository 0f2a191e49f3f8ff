// Owns commands of a sandbox: run, list, connect, signal, input. Each is `/bin/bash -l -c CMD`.
// Refuses to own terminals (pty.ts). Invariant: a foreground run that fails to listen leaves the command to its timeout.
import { toBytes } from './base64.ts';
import { CommandHandle, type CommandResult, type OutputListeners } from './command-handle.ts';
import { InvalidRequestError, NotFoundError, type ThawError } from './errors.ts';
import { programOf, selectorOf, sendInput, sendSignal } from './process-stream.ts';
import type { SandboxLink, StreamOptions, UserOptions } from './sandbox-link.ts';

export interface RunOptions extends UserOptions, OutputListeners {
  /** True: resolve with a handle as soon as the command has started. */
  background?: boolean | undefined;
  /** Milliseconds after which the command is killed; 0: never. Default: 60 000, in the background 0. */
  timeoutMs?: number | undefined;
  /** Directory it runs in. Default: the user's home. */
  cwd?: string | undefined;
  /** Environment, on top of the sandbox's. */
  envs?: Record<string, string> | undefined;
  /** Text or bytes: its whole input. True: input stays open for `sendStdin`. Default: it has none. */
  stdin?: string | Uint8Array | boolean | undefined;
  /** A name by which `connect` and `kill` find it, besides its pid. */
  tag?: string | undefined;
}

export interface ProcessInfo {
  pid: number;
  tag: string | undefined;
  cmd: string;
  args: string[];
  envs: Record<string, string>;
  cwd: string | undefined;
}

const defaultTimeoutMs = 60_000;

export class Commands {
  readonly #link: SandboxLink;

  /** @internal */
  constructor(link: SandboxLink) {
    this.#link = link;
  }

  /**
   * Runs a command in bash.
   * @returns its result; with `background: true` a handle.
   * @throws {@link CommandExitError} for an exit code other than 0, {@link DeadlineExceededError} after `timeoutMs`,
   * {@link InvalidRequestError} for a `cwd` that is no directory, {@link AuthenticationError} for an unknown user.
   */
  run(cmd: string, options: RunOptions & { background: true }): Promise<CommandHandle>;
  run(cmd: string, options?: RunOptions & { background?: false | undefined }): Promise<CommandResult>;
  run(cmd: string, options?: RunOptions): Promise<CommandHandle | CommandResult>;
  async run(cmd: string, options: RunOptions = {}): Promise<CommandHandle | CommandResult> {
    const { background = false, stdin = false, tag } = options;
    const message = {
      process: programOf(['-l', '-c', cmd], options),
      stdin: stdin !== false,
      ...(tag === undefined ? {} : { tag }),
    };
    const timeoutMs = options.timeoutMs ?? (background ? 0 : defaultTimeoutMs);
    const handle = await CommandHandle.open(this.#link, 'Start', message, { ...options, timeoutMs });
    const fed = typeof stdin === 'boolean' ? undefined : this.#feed(handle, toBytes(stdin), options);
    if (background) {
      await fed;
      return handle;
    }
    const [result] = await Promise.all([handle.wait(), fed]);
    return result;
  }

  /** The commands and terminals that run. */
  async list(options: UserOptions = {}): Promise<ProcessInfo[]> {
    const { processes = [] } = await this.#link.unary<{ processes?: WireProcess[] }>(
      'process.Process/List',
      {},
      options,
    );
    return processes.map(({ pid, tag, config }) => ({
      pid,
      tag,
      cmd: config?.cmd ?? '',
      args: config?.args ?? [],
      envs: config?.envs ?? {},
      cwd: config?.cwd,
    }));
  }

  /**
   * Listens to a command that runs, from now on: earlier output is not repeated.
   * @param which its pid, or the tag it was started with.
   * @throws {@link NotFoundError}.
   */
  connect(which: number | string, options: StreamOptions & OutputListeners = {}): Promise<CommandHandle> {
    return CommandHandle.open(this.#link, 'Connect', { process: selectorOf(which) }, options);
  }

  /** Ends a command with SIGKILL. @returns false when there is none of that pid or tag. */
  kill(which: number | string, options: UserOptions = {}): Promise<boolean> {
    return sendSignal(this.#link, which, 'SIGKILL', options);
  }

  /** Writes to the standard input of a command that was started with `stdin: true`. */
  sendStdin(which: number | string, data: string | Uint8Array, options: UserOptions = {}): Promise<void> {
    return sendInput(this.#link, which, 'stdin', toBytes(data), options);
  }

  /** Ends that input. */
  async closeStdin(which: number | string, options: UserOptions = {}): Promise<void> {
    await this.#link.unary('process.Process/CloseStdin', { process: selectorOf(which) }, options);
  }

  /** A command that reads only a part of its input, or ends first, is no failure: a shell's pipe does the same. */
  async #feed(handle: CommandHandle, bytes: Uint8Array, options: UserOptions): Promise<void> {
    try {
      await handle.sendStdin(bytes, options);
      await handle.closeStdin(options);
    } catch (error) {
      const closed = error instanceof InvalidRequestError && error.code === 'failed-precondition';
      const ended = error instanceof NotFoundError && (error as ThawError).code === 'not-found';
      if (!closed && !ended) throw error;
    }
  }
}

interface WireProcess {
  pid: number;
  tag?: string;
  config?: { cmd?: string; args?: string[]; envs?: Record<string, string>; cwd?: string };
}
