// Owns what is told of each sandbox's life, for those who ask for its log: a few lines each, in memory.
// Refuses to own what its programs write (the node) and the wire (routes/sandbox-logs.ts).
// Invariant: bounded in lines and in sandboxes; what is said holds no secret.

export const logLevels = ['debug', 'info', 'warn', 'error'] as const;
export type LogLevel = (typeof logLevels)[number];

export interface SandboxLogLine {
  atMs: number;
  level: LogLevel;
  /** What speaks: `system` is Thaw, `process` a program in the sandbox. */
  logger: 'system' | 'process';
  message: string;
  fields: Record<string, string>;
}

const maxLines = 200;
/** A sandbox that ended is forgotten; this holds what other gateways ended. */
const maxSandboxes = 10_000;

export class SandboxLogs {
  readonly #lines = new Map<string, SandboxLogLine[]>();

  say(
    sandboxId: string,
    message: string,
    fields: Record<string, string> = {},
    level: LogLevel = 'info',
  ): void {
    const lines = this.#lines.get(sandboxId) ?? [];
    lines.push({ atMs: Date.now(), level, logger: 'system', message, fields });
    if (lines.length > maxLines) lines.shift();
    this.#lines.set(sandboxId, lines);
    for (const oldest of this.#lines.keys()) {
      if (this.#lines.size <= maxSandboxes) break;
      this.#lines.delete(oldest);
    }
  }

  of(sandboxId: string): readonly SandboxLogLine[] {
    return this.#lines.get(sandboxId) ?? [];
  }

  forget(sandboxId: string): void {
    this.#lines.delete(sandboxId);
  }
}
