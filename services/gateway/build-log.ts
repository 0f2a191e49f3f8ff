// Owns the lines that a build writes: cut out of what its commands print, stored in order, at most so many.
// Refuses to own where they are kept (the state store). Invariant: a line once stored keeps its place, for clients
// ask for what follows the last one they have; a store that does not answer costs lines, never the build.
import type { Log } from '../../shared/log.ts';
import type { BuildLogLine, TemplateStore } from './state/state-store.ts';

const maxLines = 20_000;
const maxLineChars = 4_096;
/** Lines of the failure's own explanation. */
const tailLines = 20;

export class BuildLog {
  readonly #store: TemplateStore;
  readonly #buildId: string;
  readonly #log: Log;
  #waiting: BuildLogLine[] = [];
  #count = 0;
  #writing: Promise<void> | undefined;
  #tail: string[] = [];

  constructor(store: TemplateStore, buildId: string, log: Log) {
    this.#store = store;
    this.#buildId = buildId;
    this.#log = log;
  }

  /** The last lines that commands printed since the last step began. */
  get tail(): string {
    return this.#tail.join('\n');
  }

  add(step: string, message: string, level: BuildLogLine['level'] = 'info'): void {
    if (this.#count > maxLines) return;
    const last = this.#count++ === maxLines;
    const line = last ? `more than ${maxLines} lines: what follows is not kept` : message;
    this.#waiting.push({
      timestamp: new Date().toISOString(),
      level: last ? 'warn' : level,
      message: line.slice(0, maxLineChars),
      step,
    });
    this.#writing ??= this.#write();
  }

  beginStep(step: string, message: string): void {
    this.#tail = [];
    this.add(step, message);
  }

  /** Takes what a command prints. @returns where to put its pieces, and what ends it. */
  output(step: string): { onOutput(stream: 'stdout' | 'stderr', chunk: Buffer): void; end(): void } {
    const rest = { stdout: '', stderr: '' };
    const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() };
    const line = (stream: 'stdout' | 'stderr', text: string) => {
      // A progress bar writes over its own line: what it showed last is what counts.
      const shown = text.replace(/\r+$/, '').split('\r').at(-1)!;
      this.#tail = [...this.#tail.slice(1 - tailLines), shown.slice(0, maxLineChars)];
      this.add(step, shown, stream === 'stdout' ? 'info' : 'warn');
    };
    return {
      onOutput(stream, chunk) {
        const lines = (rest[stream] + decoders[stream].decode(chunk, { stream: true })).split('\n');
        rest[stream] = lines.pop()!.slice(-maxLineChars);
        for (const text of lines) line(stream, text);
      },
      end() {
        for (const stream of ['stdout', 'stderr'] as const)
          if (rest[stream] !== '') line(stream, rest[stream]);
      },
    };
  }

  /** Resolves when all of it is stored, or will not be. */
  async flush(): Promise<void> {
    while (this.#writing) await this.#writing;
  }

  async #write(): Promise<void> {
    // One turn: what comes in one piece goes out in one.
    await Promise.resolve();
    while (this.#waiting.length > 0) {
      const lines = this.#waiting;
      this.#waiting = [];
      await this.#store.appendLog(this.#buildId, lines).catch((error: Error) => {
        this.#log.warn({ buildId: this.#buildId, reason: error.message }, 'lines of a build are lost');
      });
    }
    this.#writing = undefined;
  }
}
