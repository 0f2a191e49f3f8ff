// Owns trying scenarios with clients against a server.
// Refuses to own the scenarios (javascript/, python/), having the clients (install-client.ts) and showing what came of it
// (page.ts). Invariant: what was not tried, or broke off, is a failure with its reason; nothing is left out.
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Client, installClient } from './install-client.ts';
import type { Scenario } from './scenarios.ts';

export interface Outcome {
  scenario: string;
  status: 'passed' | 'failed' | 'skipped';
  reason: string;
}

export interface Column {
  client: Client;
  outcomes: Outcome[];
}

export interface Server {
  apiUrl: string;
  apiKey: string;
  /** Where it is reached by host name over TLS. */
  names?: { domain: string; authorityPath: string; proxyUrl: string };
}

export async function pinnedClients(): Promise<Client[]> {
  const text = await readFile(join(import.meta.dirname, 'clients.json'), 'utf8');
  const pinned = JSON.parse(text) as Record<Client['kind'], string[]>;
  return (['npm', 'pypi'] as const).flatMap((kind) => pinned[kind].map((version) => ({ kind, version })));
}

/** All of its scenarios. */
const clientTimeoutMs = 300_000;
const resolver = ['--import', join(import.meta.dirname, '../edge/names-resolve-here.ts')];

/** Tries the scenarios with one client, one after the other. */
export async function tryClient(client: Client, server: Server, tried: readonly Scenario[]): Promise<Column> {
  const dir = await installClient(client);
  const program =
    client.kind === 'npm'
      ? [process.execPath, ...resolver, join(import.meta.dirname, 'javascript/run.ts')]
      : ['python3', join(import.meta.dirname, 'python/run.py')];
  const names = tried.map((scenario) => scenario.name);
  const { lines, said } = await linesOf([...program, dir, ...names], server);
  const found = new Map<string, Outcome>();
  for (const line of lines) {
    const outcome = outcomeOf(line);
    if (outcome !== undefined) found.set(outcome.scenario, outcome);
  }
  const missing = (scenario: string): Outcome => ({
    scenario,
    status: 'failed',
    reason: `the client's program ended before: ${said.trim().split('\n').at(-1) ?? ''}`,
  });
  return { client, outcomes: names.map((name) => found.get(name) ?? missing(name)) };
}

function outcomeOf(line: string): Outcome | undefined {
  try {
    const value = JSON.parse(line) as Outcome;
    return typeof value.scenario === 'string' ? value : undefined;
  } catch {
    // Clients may print words of their own.
    return undefined;
  }
}

async function linesOf(argv: string[], server: Server): Promise<{ lines: string[]; said: string }> {
  const child = spawn(argv[0]!, argv.slice(1), {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: clientTimeoutMs,
    killSignal: 'SIGKILL',
    env: {
      ...process.env,
      E2B_API_URL: server.apiUrl,
      E2B_SANDBOX_URL: server.apiUrl,
      E2B_API_KEY: server.apiKey,
      PYTHONDONTWRITEBYTECODE: '1',
      ...namesFor(server),
    },
  });
  let stdout = '';
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  await new Promise((resolve) => child.once('close', resolve));
  return { lines: stdout.split('\n'), said };
}

function namesFor({ names }: Server): Record<string, string> {
  if (names === undefined) return {};
  return {
    THAW_TEST_HOST_NAMES: names.domain,
    THAW_TEST_DOMAIN: names.domain.split(':')[0]!,
    THAW_TEST_PROXY: names.proxyUrl,
    NODE_EXTRA_CA_CERTS: names.authorityPath,
    SSL_CERT_FILE: names.authorityPath,
  };
}
