// Owns the host's end of the control channel: requests with deadlines, replies by id, events to listeners.
// Refuses to own what a reply means (handshake.ts). Invariant: a closed channel ends every request at once.
import { randomInt } from 'node:crypto';
import type { Duplex } from 'node:stream';
import type { ControlCommand, ControlEvent, ControlFailure } from '../../shared/agent-protocol.ts';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';

const maxLineBytes = 256 * 1024;

type Reply = { id: number; ok: true } & Record<string, unknown>;

export class ControlClient {
  readonly #stream: Duplex;
  readonly #pending = new Map<number, { resolve(reply: Reply): void; reject(error: Error): void }>();
  readonly #listeners: ((event: ControlEvent) => void)[] = [];
  // A clone's memory may hold a half-sent reply of its template: a random start keeps it from matching ours.
  #nextId = randomInt(2 ** 40);
  #partial = '';
  #closed = false;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.setEncoding('utf8');
    stream.on('data', (text: string) => this.#receive(text));
    stream.on('error', () => this.#close());
    for (const end of ['end', 'close']) stream.on(end, () => this.#close());
    // Ends whatever half line the guest had read from an earlier host.
    stream.write('\n');
  }

  /** @throws ThawError `guest-unreachable` with the agent's words, or `deadline-exceeded`. */
  async request<R>(command: ControlCommand, timeoutMs: number): Promise<R> {
    if (this.#closed) throw new ThawError('guest-unreachable', 'the control channel is closed');
    const id = this.#nextId++;
    const reply = new Promise<Reply>((resolve, reject) => this.#pending.set(id, { resolve, reject }));
    this.#stream.write(`${JSON.stringify({ id, ...command })}\n`);
    try {
      return (await withDeadline(`guest ${command.op}`, timeoutMs, reply)) as R;
    } finally {
      this.#pending.delete(id);
    }
  }

  onEvent(listener: (event: ControlEvent) => void): void {
    this.#listeners.push(listener);
  }

  #receive(text: string): void {
    const lines = (this.#partial + text).split('\n');
    this.#partial = lines.pop() ?? '';
    // The guest is not trusted: a line without end would grow in our memory.
    if (this.#partial.length > maxLineBytes) this.#stream.destroy();
    for (const line of lines) this.#dispatch(line);
  }

  #dispatch(line: string): void {
    const message = parseObject(line);
    if (message === undefined) return;
    if (typeof message.event === 'string') {
      for (const listener of this.#listeners) listener(message as unknown as ControlEvent);
      return;
    }
    const pending = this.#pending.get(message.id as number);
    if (message.ok === true) pending?.resolve(message as Reply);
    else
      pending?.reject(
        new ThawError('guest-unreachable', String((message as unknown as ControlFailure).message)),
      );
  }

  #close(): void {
    this.#closed = true;
    for (const { reject } of this.#pending.values())
      reject(new ThawError('guest-unreachable', 'the control channel closed'));
    this.#pending.clear();
  }
}

function parseObject(line: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}
