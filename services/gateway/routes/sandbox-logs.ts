// Owns the E2B routes of a sandbox's log, in the shapes of both versions: what Thaw tells of its life, and what the
// programs that were started with it wrote. Refuses to own a history: it is of the sandbox's life, and ends with it.
import type { FastifyInstance } from 'fastify';
import type { GatewayContext } from '../gateway-context.ts';
import { integerIn, oneOfIn, type Query, textIn } from '../query-values.ts';
import { logLevels, type SandboxLogLine } from '../sandbox-logs.ts';
import { idOf } from './sandboxes.ts';

type Asked = { Params: { id: string }; Querystring: Query };

const maxLines = 1_000;
const endOfTimeMs = 8_640_000_000_000_000;

export function logRoutes(app: FastifyInstance, context: GatewayContext): void {
  app.get<Asked>('/sandboxes/:id/logs', async ({ params, query }) => {
    const startMs = timeIn(query, 'start') ?? 0;
    const lines = linesOf(context, idOf(params)).filter(({ atMs }) => atMs >= startMs);
    const shown = lines.slice(0, limitIn(query));
    return { logs: shown.map(asText), logEntries: shown.map(asEntry) };
  });
  app.get<Asked>('/v2/sandboxes/:id/logs', async ({ params, query }) => {
    const matches = filterOf(query);
    const backward = oneOfIn(query, 'direction', ['forward', 'backward']) === 'backward';
    const cursorMs = timeIn(query, 'cursor') ?? (backward ? endOfTimeMs : 0);
    const lines = linesOf(context, idOf(params))
      .filter(({ atMs }) => (backward ? atMs <= cursorMs : atMs >= cursorMs))
      .filter(matches);
    if (backward) lines.reverse();
    return { logs: lines.slice(0, limitIn(query)).map(asEntry) };
  });
}

const timeIn = (query: Query, name: string) => integerIn(query, name, 0, endOfTimeMs);
const limitIn = (query: Query): number => integerIn(query, 'limit', 1, maxLines) ?? maxLines;

/** Oldest first. @throws ThawError `sandbox-not-found`. */
function linesOf({ sandboxes, node }: GatewayContext, sandboxId: string): SandboxLogLine[] {
  sandboxes.get(sandboxId);
  const written = (node.sandboxLog?.(sandboxId) ?? []).map(
    ({ atMs, line, stream }): SandboxLogLine => ({
      atMs,
      level: stream === 'stderr' ? 'warn' : 'info',
      logger: 'process',
      message: line,
      fields: { stream },
    }),
  );
  return [...sandboxes.logs.of(sandboxId), ...written].sort((a, b) => a.atMs - b.atMs);
}

function filterOf(query: Query): (line: SandboxLogLine) => boolean {
  const least = logLevels.indexOf(oneOfIn(query, 'level', logLevels) ?? 'debug');
  const words = textIn(query, 'search') ?? '';
  return ({ level, message }) => logLevels.indexOf(level) >= least && message.includes(words);
}

const timestampOf = ({ atMs }: SandboxLogLine): string => new Date(atMs).toISOString();

const asEntry = (line: SandboxLogLine) => ({
  timestamp: timestampOf(line),
  level: line.level,
  message: line.message,
  fields: { logger: line.logger, ...line.fields },
});

/** The command line of E2B reads each line as JSON. */
const asText = (line: SandboxLogLine) => ({
  timestamp: timestampOf(line),
  line: JSON.stringify({ ...line.fields, level: line.level, logger: line.logger, message: line.message }),
});
