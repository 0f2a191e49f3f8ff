// Owns showing steps that take time: a live line with the elapsed time on a terminal, plain lines elsewhere.
// Invariant: each step ends in one line that says how it ended and how long it took.
import type { Writable } from 'node:stream';

export interface Step {
  /** What is being done now within the step. */
  update(detail: string): void;
  done(detail?: string): void;
  failed(): void;
}

export interface Progress {
  step(title: string): Step;
  /** A line of its own, above a live one. */
  note(text: string): void;
}

const refreshMs = 200;
/** Where there is no live line, a reader of the log still wants to see that it goes on. */
const plainRefreshMs = 15_000;
/** Not each of a package manager's lines. */
const plainGapMs = 2_000;

export function createProgress(stream: Writable & { isTTY?: boolean; columns?: number }): Progress {
  let redraw: (() => void) | undefined;
  const clear = () => void (stream.isTTY && redraw && stream.write('\r\x1b[K'));
  return {
    note(text) {
      clear();
      stream.write(`${text}\n`);
      redraw?.();
    },
    step(title) {
      const startedAtMs = performance.now();
      let detail = '';
      let drawnAtMs = Number.NEGATIVE_INFINITY;
      const elapsed = () => secondsText(performance.now() - startedAtMs);
      const draw = () => {
        drawnAtMs = performance.now();
        const text = `… ${title}${detail && ` (${detail})`}  ${elapsed()}`;
        if (stream.isTTY) stream.write(`\r\x1b[K${text.slice(0, (stream.columns ?? 80) - 1)}`);
        else stream.write(`${text}\n`);
      };
      const timer = setInterval(draw, stream.isTTY ? refreshMs : plainRefreshMs);
      redraw = stream.isTTY ? draw : undefined;
      if (stream.isTTY) draw();
      const end = (mark: string, text: string) => {
        clear();
        redraw = undefined;
        clearInterval(timer);
        stream.write(`${mark} ${title}${text && ` (${text})`}  ${elapsed()}\n`);
      };
      return {
        update(text) {
          if (text === detail) return;
          detail = text;
          if (stream.isTTY || performance.now() - drawnAtMs >= plainGapMs) draw();
        },
        done: (text = '') => end('✓', text),
        failed: () => end('✗', ''),
      };
    },
  };
}

/** Runs `work` as a step; a failure marks it and goes on to the caller. */
export async function withStep<T>(
  progress: Progress,
  title: string,
  work: (step: Step) => Promise<T>,
  summary: (result: T) => string = () => '',
): Promise<T> {
  const step = progress.step(title);
  try {
    const result = await work(step);
    step.done(summary(result));
    return result;
  } catch (error) {
    step.failed();
    throw error;
  }
}

export const secondsText = (elapsedMs: number): string => `${(elapsedMs / 1000).toFixed(1)} s`;
