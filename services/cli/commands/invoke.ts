// Owns `thaw invoke`: one request to a function, its body to standard output.
// Invariant: the body is streamed as it comes; a status of 400 or above is exit code 1.
import { createReadStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import type { Dispatcher } from 'undici';
import type { ApiClient, ApiResponse } from '../api-client.ts';
import { apiErrorOf } from '../api-client.ts';
import { ExitCode, UsageError } from '../failure.ts';
import { type AddCommand, withClientOptions } from '../session.ts';

interface InvokeOptions {
  method?: string;
  data?: string;
  header: string[];
}

/** Longer than any function may take. */
const headersTimeoutMs = 960_000;

export const addInvoke: AddCommand = (program, session) => {
  withClientOptions(program.command('invoke <name> [path]'))
    .description('call a function; its answer goes to standard output')
    .option('-X, --method <METHOD>', 'GET, or POST with --data')
    .option('-d, --data <DATA>', 'request body; @FILE reads a file, @- standard input')
    .option(
      '-H, --header <HEADER>',
      "'Name: value', may be repeated",
      (value, all: string[]) => [...all, value],
      [],
    )
    .action(async (name: string, path: string | undefined, options: InvokeOptions, command) =>
      session.withClient(command, async (client, output) => {
        const startedAtMs = performance.now();
        const response = await invoke(client, name, path ?? '/', options);
        const platform = response.headers['content-type']?.includes('application/problem+json');
        if (response.headers['x-thaw-error'] !== undefined && platform) throw await apiErrorOf(response);
        if (output.json) {
          const { statusCode: status, headers } = response;
          const body = await response.body.text();
          output.value({ status, headers, body, elapsedMs: performance.now() - startedAtMs });
        } else await pipeline(response.body, session.stdout, { end: false });
        if (response.statusCode >= 400) {
          output.error(`thaw: ${name} answered with status ${response.statusCode}`);
          throw new ExitCode(1);
        }
      }),
    );
};

async function invoke(
  client: ApiClient,
  name: string,
  path: string,
  options: InvokeOptions,
): Promise<ApiResponse> {
  const headers = Object.fromEntries(options.header.map(headerOf));
  const body = await bodyOf(options.data);
  const method = (options.method?.toUpperCase() ??
    (body === undefined ? 'GET' : 'POST')) as Dispatcher.HttpMethod;
  const rest = path.startsWith('/') ? path : `/${path}`;
  return client.send(`/fn/${name}${rest}`, { method, headers, body: body ?? null, headersTimeoutMs });
}

function headerOf(text: string): [string, string] {
  const at = text.indexOf(':');
  if (at < 1) throw new UsageError(`--header: expected 'Name: value', got ${JSON.stringify(text)}`);
  return [text.slice(0, at).trim().toLowerCase(), text.slice(at + 1).trim()];
}

async function bodyOf(data: string | undefined) {
  if (data === undefined || !data.startsWith('@')) return data;
  if (data === '@-') return process.stdin;
  await readFile(data.slice(1), { flag: 'r' }).catch((error: Error) => {
    throw new UsageError(`--data: ${error.message}`);
  });
  return createReadStream(data.slice(1));
}
