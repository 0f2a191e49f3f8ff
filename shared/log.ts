// Owns the logger. Libraries take a `Log`; only programs call `createLog`.
// Invariant: secrets never reach a line: known secret fields are redacted here, once.
import { pino } from 'pino';

export type Log = Pick<pino.Logger, 'debug' | 'info' | 'warn' | 'error'> & {
  child(bindings: Record<string, unknown>): Log;
};

const secretFields = ['secret', 'accessToken', 'trafficAccessToken', 'apiKey', 'seed', 'envVars', 'env'];
const redactPaths = secretFields.flatMap((field) => [field, `*.${field}`]);

/** @param options.path log file; standard error when absent. */
export function createLog(options: { level?: string; path?: string } = {}): Log {
  const destination = pino.destination({ dest: options.path ?? 2, sync: false, mkdir: true });
  return pino(
    {
      level: options.level ?? 'info',
      redact: [...redactPaths, 'req.headers.authorization', 'req.headers["x-api-key"]'],
    },
    destination,
  );
}

export const silentLog: Log = pino({ level: 'silent' });
