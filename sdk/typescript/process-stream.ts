// Owns one running process as its listener sees it: its events in order, its end, and the calls that reach it by pid.
// Refuses to own what a caller collects (command-handle.ts, pty.ts).
// Invariant: a listener that takes long holds the process's output back; nothing is buffered without bound here.
import { fromBase64, toBase64 } from './base64.ts';
import { NotFoundError, ThawError } from './errors.ts';
import type { EventStream, SandboxLink, StreamOptions, UserOptions } from './sandbox-link.ts';

export interface ProcessEvent {
  event?: {
    start?: { pid: number };
    data?: { stdout?: string; stderr?: string; pty?: string };
    end?: { exitCode?: number; exited?: boolean; status?: string; error?: string };
    keepalive?: object;
  };
}

export interface ProcessEnd {
  /** -1 when a signal ended it. */
  exitCode: number;
  /** Why it failed, in the agent's words; undefined for exit code 0. */
  error: string | undefined;
}

export type OutputName = 'stdout' | 'stderr' | 'pty';
export type OnOutput = (name: OutputName, bytes: Uint8Array) => void | Promise<void>;

/** Input is sent in pieces of at most this many bytes. */
const inputPieceBytes = 1024 * 1024;

/** How a process is named: its pid, or the tag it was started with. */
export const selectorOf = (which: number | string) =>
  typeof which === 'number' ? { pid: which } : { tag: which };

/** The `process` message of a program with its arguments. */
export const programOf = (
  args: string[],
  options: { cwd?: string | undefined; envs?: Record<string, string> | undefined },
) => ({
  cmd: '/bin/bash',
  args,
  envs: options.envs ?? {},
  ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
});

export class ProcessStream {
  readonly pid: number;
  readonly #stream: EventStream<ProcessEvent>;
  readonly ended: Promise<ProcessEnd>;

  private constructor(stream: EventStream<ProcessEvent>, pid: number, onOutput: OnOutput) {
    this.#stream = stream;
    this.pid = pid;
    this.ended = this.#pump(onOutput);
    // Whoever waits hears of a failure; who does not wait must not be ended by it.
    this.ended.catch(() => {});
  }

  /** @param method `Start` or `Connect`. @throws ThawError when the process could not be started or found. */
  static async open(
    link: SandboxLink,
    method: 'Start' | 'Connect',
    message: object,
    options: StreamOptions,
    onOutput: OnOutput,
  ): Promise<ProcessStream> {
    const stream = await link.stream<ProcessEvent>(`process.Process/${method}`, message, options);
    const { value: first, done } = await stream.events.next();
    const pid = done ? undefined : first.event?.start?.pid;
    if (pid !== undefined) return new ProcessStream(stream, pid, onOutput);
    stream.close();
    throw new ThawError('the first event was not the start of the process', { code: 'internal' });
  }

  /** Ends the listening; the process goes on. */
  disconnect(): void {
    this.#stream.close();
  }

  async #pump(onOutput: OnOutput): Promise<ProcessEnd> {
    try {
      for await (const { event } of this.#stream.events) {
        for (const name of ['stdout', 'stderr', 'pty'] as const)
          if (event?.data?.[name]) await onOutput(name, fromBase64(event.data[name]));
        if (event?.end !== undefined) return endOf(event.end);
      }
    } finally {
      this.#stream.close();
    }
    throw new ThawError('this handle was disconnected before the process ended', { code: 'disconnected' });
  }
}

type WireEnd = NonNullable<NonNullable<ProcessEvent['event']>['end']>;

/** A zero exit code may be left out on the wire. */
function endOf({ exitCode = 0, error, status }: WireEnd): ProcessEnd {
  return { exitCode, error: error || (exitCode === 0 ? undefined : status) };
}

/** @returns false when there is no such process any more. */
export async function sendSignal(
  link: SandboxLink,
  which: number | string,
  signal: 'SIGKILL' | 'SIGTERM',
  options: UserOptions,
): Promise<boolean> {
  const message = { process: selectorOf(which), signal: `SIGNAL_${signal}` };
  try {
    await link.unary('process.Process/SendSignal', message, options);
    return true;
  } catch (error) {
    if (error instanceof NotFoundError && error.code === 'not-found') return false;
    throw error;
  }
}

export async function sendInput(
  link: SandboxLink,
  which: number | string,
  kind: 'stdin' | 'pty',
  bytes: Uint8Array,
  options: UserOptions,
): Promise<void> {
  for (let at = 0; at < bytes.length; at += inputPieceBytes) {
    const piece = bytes.subarray(at, at + inputPieceBytes);
    const message = { process: selectorOf(which), input: { [kind]: toBase64(piece) } };
    await link.unary('process.Process/SendInput', message, options);
  }
}
