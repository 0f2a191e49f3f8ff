// Owns turning a program's output into log events: whole lines, of bounded length, at a bounded rate.
// Refuses to own where events go. Invariant: what is not passed on is counted, and the count travels with the next line.
import type { Readable } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';
import type { LogEvent } from '../../shared/agent-protocol.ts';

const maxLineChars = 8 * 1024;
const maxLinesPerSecond = 1000;

export type LogSink = (event: LogEvent) => boolean;

export class LineLog {
  readonly #sink: LogSink;
  readonly #now: () => number;
  #windowStartMs = 0;
  #linesInWindow = 0;
  #dropped = 0;

  /** @param sink returns false when it could not take the event. */
  constructor(sink: LogSink, now: () => number = Date.now) {
    this.#sink = sink;
    this.#now = now;
  }

  follow(stream: 'stdout' | 'stderr', output: Readable): void {
    const decoder = new StringDecoder('utf8');
    let partial = '';
    output.on('data', (chunk: Buffer) => {
      const lines = (partial + decoder.write(chunk)).split('\n');
      partial = lines.pop()!;
      for (const line of lines) this.#line(stream, line);
      for (; partial.length >= maxLineChars; partial = partial.slice(maxLineChars))
        this.#line(stream, partial.slice(0, maxLineChars));
    });
    output.once('end', () => {
      if (partial !== '') this.#line(stream, partial);
    });
  }

  #line(stream: 'stdout' | 'stderr', line: string): void {
    for (let at = 0; at === 0 || at < line.length; at += maxLineChars)
      this.#emit(stream, line.slice(at, at + maxLineChars));
  }

  #emit(stream: 'stdout' | 'stderr', line: string): void {
    const atMs = this.#now();
    // The clock jumps at a restore: a window that lies in the future is over, too.
    if (atMs - this.#windowStartMs >= 1000 || atMs < this.#windowStartMs) {
      this.#windowStartMs = atMs;
      this.#linesInWindow = 0;
    }
    const event: LogEvent = { event: 'log', stream, line, atMs };
    if (this.#dropped > 0) event.dropped = this.#dropped;
    if (++this.#linesInWindow <= maxLinesPerSecond && this.#sink(event)) this.#dropped = 0;
    else this.#dropped++;
  }
}
