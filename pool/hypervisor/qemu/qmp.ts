// Owns one QMP conversation: commands in order, replies matched, events offered to waiters.
// Refuses to own what the commands mean. Invariant: every command ends, at the latest with the VMM or its deadline.
import type { Duplex } from 'node:stream';
import { withDeadline } from '../../../shared/deadline.ts';
import { ThawError } from '../../../shared/errors.ts';

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

const maxLineBytes = 1024 * 1024;

export class Qmp {
  readonly #stream: Duplex;
  readonly #pending: Pending[] = [];
  readonly #eventWaiters = new Map<string, Pending[]>();
  #partial = '';
  #ended: Error | undefined;

  constructor(stream: Duplex) {
    this.#stream = stream;
    stream.setEncoding('utf8');
    stream.on('data', (text: string) => this.#receive(text));
    stream.on('error', (error) => this.#end(error));
    for (const end of ['end', 'close']) stream.on(end, () => this.#end(new Error('QMP closed')));
    // The greeting needs no answer; capabilities negotiation is the first command.
    void this.execute('qmp_capabilities').catch(() => {});
  }

  /** @throws ThawError `hypervisor-failed` with QEMU's own words, `deadline-exceeded`. */
  async execute(command: string, args?: Record<string, unknown>, timeoutMs = 10_000): Promise<unknown> {
    if (this.#ended) throw new ThawError('hypervisor-failed', `${command}: ${this.#ended.message}`);
    const reply = new Promise<unknown>((resolve, reject) => this.#pending.push({ resolve, reject }));
    this.#stream.write(
      `${JSON.stringify(args ? { execute: command, arguments: args } : { execute: command })}\n`,
    );
    return withDeadline(`QMP ${command}`, timeoutMs, reply);
  }

  /** Resolves at the next event of this name; ask before the command that causes it. */
  event(name: string, timeoutMs = 10_000): Promise<unknown> {
    const arrival = new Promise<unknown>((resolve, reject) => {
      if (this.#ended) reject(this.#ended);
      const waiters = this.#eventWaiters.get(name) ?? [];
      this.#eventWaiters.set(name, [...waiters, { resolve, reject }]);
    });
    return withDeadline(`QMP event ${name}`, timeoutMs, arrival);
  }

  #receive(text: string): void {
    const lines = (this.#partial + text).split('\n');
    this.#partial = lines.pop() ?? '';
    if (this.#partial.length > maxLineBytes) this.#stream.destroy(new Error('QMP line too long'));
    for (const line of lines) if (line.trim() !== '') this.#dispatch(JSON.parse(line));
  }

  #dispatch(message: { event?: string; data?: unknown; return?: unknown; error?: { desc: string } }): void {
    if (message.event !== undefined) {
      const waiters = this.#eventWaiters.get(message.event) ?? [];
      this.#eventWaiters.delete(message.event);
      for (const waiter of waiters) waiter.resolve(message.data);
    } else if (message.error) {
      this.#pending.shift()?.reject(new ThawError('hypervisor-failed', message.error.desc));
    } else if ('return' in message) {
      this.#pending.shift()?.resolve(message.return);
    }
  }

  #end(error: Error): void {
    if (this.#ended) return;
    this.#ended = error;
    for (const pending of this.#pending.splice(0)) pending.reject(error);
    for (const waiters of this.#eventWaiters.values()) for (const waiter of waiters) waiter.reject(error);
    this.#eventWaiters.clear();
  }
}
