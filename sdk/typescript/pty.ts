// Owns terminals of a sandbox: an interactive login bash on a pseudo-terminal.
// Refuses to own commands without one (commands.ts). Invariant: bytes pass through as they are, both ways.
import { toBytes } from './base64.ts';
import { ProcessStream, programOf, sendInput, sendSignal } from './process-stream.ts';
import type { SandboxLink, StreamOptions, UserOptions } from './sandbox-link.ts';

export interface PtySize {
  cols: number;
  rows: number;
}

export interface PtyListener {
  /** Receives what the terminal shows; a promise it returns holds further output back. */
  onData: (bytes: Uint8Array) => void | Promise<void>;
}

export interface PtyOptions extends PtySize, PtyListener, StreamOptions {
  cwd?: string | undefined;
  envs?: Record<string, string> | undefined;
}

/** A terminal that runs in a sandbox. It outlives this handle. */
export class PtyHandle {
  readonly #pty: Pty;
  readonly #stream: ProcessStream;

  /** @internal */
  constructor(pty: Pty, stream: ProcessStream) {
    this.#pty = pty;
    this.#stream = stream;
  }

  get pid(): number {
    return this.#stream.pid;
  }

  /** Waits for the shell's end. @returns its exit code, -1 when a signal ended it. */
  async wait(): Promise<{ exitCode: number }> {
    const { exitCode } = await this.#stream.ended;
    return { exitCode };
  }

  /** Types. */
  sendInput(data: string | Uint8Array, options: UserOptions = {}): Promise<void> {
    return this.#pty.sendInput(this.pid, data, options);
  }

  resize(size: PtySize, options: UserOptions = {}): Promise<void> {
    return this.#pty.resize(this.pid, size, options);
  }

  /** @returns false when it had ended before. */
  kill(options: UserOptions = {}): Promise<boolean> {
    return this.#pty.kill(this.pid, options);
  }

  /** Stops listening; the terminal goes on, see {@link Pty.connect}. */
  disconnect(): void {
    this.#stream.disconnect();
  }
}

export class Pty {
  readonly #link: SandboxLink;

  /** @internal */
  constructor(link: SandboxLink) {
    this.#link = link;
  }

  /** Opens a terminal. `timeoutMs` 0, the default, lets it live as long as the sandbox. */
  async create(options: PtyOptions): Promise<PtyHandle> {
    const { cols, rows, onData } = options;
    const envs = { TERM: 'xterm-256color', LANG: 'C.UTF-8', LC_ALL: 'C.UTF-8', ...options.envs };
    const message = {
      process: programOf(['-i', '-l'], { cwd: options.cwd, envs }),
      pty: { size: { cols, rows } },
    };
    return this.#open('Start', message, options, onData);
  }

  /** Listens to a terminal that runs. @throws {@link NotFoundError}. */
  connect(pid: number, options: PtyListener & StreamOptions): Promise<PtyHandle> {
    return this.#open('Connect', { process: { pid } }, options, options.onData);
  }

  sendInput(pid: number, data: string | Uint8Array, options: UserOptions = {}): Promise<void> {
    return sendInput(this.#link, pid, 'pty', toBytes(data), options);
  }

  async resize(pid: number, size: PtySize, options: UserOptions = {}): Promise<void> {
    const { cols, rows } = size;
    const message = { process: { pid }, pty: { size: { cols, rows } } };
    await this.#link.unary('process.Process/Update', message, options);
  }

  /** @returns false when there is none of that pid. */
  kill(pid: number, options: UserOptions = {}): Promise<boolean> {
    return sendSignal(this.#link, pid, 'SIGKILL', options);
  }

  async #open(
    method: 'Start' | 'Connect',
    message: object,
    options: StreamOptions,
    onData: PtyListener['onData'],
  ): Promise<PtyHandle> {
    const stream = await ProcessStream.open(this.#link, method, message, options, (_name, bytes) =>
      onData(bytes),
    );
    return new PtyHandle(this, stream);
  }
}
