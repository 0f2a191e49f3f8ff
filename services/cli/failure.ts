// Owns how the CLI ends: which failure becomes which exit code and which one line.
// Invariant: an expected failure is one line without a stack; only an unexpected one shows where it came from.
import { CommanderError } from 'commander';
import { type ErrorCode, errorKinds, ThawError } from '../../shared/errors.ts';
import type { Output } from './output.ts';

export const exitCodes = { ok: 0, failed: 1, usage: 2, notReachable: 3 } as const;

/** The caller wrote something that cannot be meant: exit code 2. */
export class UsageError extends Error {}

/** Nothing answers where Thaw should be: exit code 3. */
export class NotReachableError extends Error {}

/** Thaw answered with a failure; the fields are those of its body. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly requestId: string | undefined;

  constructor(status: number, code: string, detail: string, requestId: string | undefined) {
    super(detail);
    this.status = status;
    this.code = code;
    this.requestId = requestId;
  }
}

/** A program that Thaw ran ended with this; everything there was to say has been said. */
export class ExitCode extends Error {
  readonly exitCode: number;

  constructor(exitCode: number) {
    super(`exit code ${exitCode}`);
    this.exitCode = exitCode;
  }
}

/** What an operator can do about it, where the detail does not say. */
const remedies: Partial<Record<ErrorCode, string>> = {
  'data-dir-in-use': 'stop it, or give this one another directory with THAW_DATA_DIR',
  'no-space': 'free some space, or set THAW_DATA_DIR to another disk',
};

/** Tells the user, and @returns the exit code. */
export function report(error: unknown, output: Output): number {
  if (error instanceof ExitCode) return error.exitCode;
  // commander has written its own words already.
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
  const { line, code, exitCode } = described(error);
  if (output.json) {
    const requestId = error instanceof ApiError ? { requestId: error.requestId } : {};
    output.value({ error: { code, detail: line, ...requestId } });
  } else output.error(`thaw: ${line}`);
  if (code === 'internal' && error instanceof Error && error.stack) output.error(error.stack);
  return exitCode;
}

function described(error: unknown): { line: string; code: string; exitCode: number } {
  if (error instanceof UsageError) return { line: error.message, code: 'usage', exitCode: exitCodes.usage };
  if (error instanceof NotReachableError)
    return { line: error.message, code: 'not-reachable', exitCode: exitCodes.notReachable };
  if (error instanceof ApiError) {
    const request = error.requestId === undefined ? '' : `, request ${error.requestId}`;
    return {
      line: `${error.message} (${error.code}${request})`,
      code: error.code,
      exitCode: exitCodes.failed,
    };
  }
  if (error instanceof ThawError && error.code !== 'internal') {
    const remedy = remedies[error.code];
    const line = `${error.message} (${error.code})${remedy === undefined ? '' : `; ${remedy}`}`;
    const exitCode = error.code === 'bad-config' ? exitCodes.usage : exitCodes.failed;
    return { line, code: error.code, exitCode };
  }
  const message = error instanceof Error ? error.message : String(error);
  return { line: `${errorKinds.internal.title} ${message}`, code: 'internal', exitCode: exitCodes.failed };
}
