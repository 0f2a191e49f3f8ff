// Owns where the CLI's words go: results to standard output, everything else to standard error.
// Invariant: with --json standard output carries JSON and nothing else.
import type { Writable } from 'node:stream';

export interface Output {
  readonly json: boolean;
  readonly stdout: Writable;
  readonly stderr: Writable;
  /** A result for people; not shown with --json. */
  line(text: string): void;
  /** A result for programs; only shown with --json. */
  value(value: unknown): void;
  /** What is no result: progress, warnings, errors. */
  error(text: string): void;
}

export function createOutput(options: { json: boolean; stdout: Writable; stderr: Writable }): Output {
  const { json, stdout, stderr } = options;
  return {
    json,
    stdout,
    stderr,
    line: (text) => void (json || stdout.write(`${text}\n`)),
    value: (value) => void (json && stdout.write(`${JSON.stringify(value, null, 2)}\n`)),
    error: (text) => void stderr.write(`${text}\n`),
  };
}

/** Columns as wide as their widest cell, two spaces apart; numbers to the right. */
export function table(headings: string[], rows: (string | number | null | undefined)[][]): string {
  const cells = rows.map((row) =>
    row.map((cell) => (cell === null || cell === undefined ? '-' : String(cell))),
  );
  const widths = headings.map((heading, column) =>
    Math.max(heading.length, ...cells.map((row) => row[column]?.length ?? 0)),
  );
  const numeric = headings.map(
    (_, column) => rows.length > 0 && rows.every((row) => typeof row[column] === 'number'),
  );
  const shown = (row: string[]) =>
    row
      .map((cell, column) =>
        numeric[column] ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!),
      )
      .join('  ')
      .trimEnd();
  return [headings, ...cells].map(shown).join('\n');
}
