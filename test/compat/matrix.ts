// Owns trying scenarios with clients against a server, and the page that shows what came of it.
// Refuses to own the scenarios (javascript/, python/) and having the clients (install-client.ts).
// Invariant: what was not tried, or broke off, is a failure with its reason; nothing is left out of a table.
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Client, installClient, labelOf } from './install-client.ts';
import { type Scenario, scenarios } from './scenarios.ts';

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
}

export async function pinnedClients(): Promise<Client[]> {
  const text = await readFile(join(import.meta.dirname, 'clients.json'), 'utf8');
  const pinned = JSON.parse(text) as Record<Client['kind'], string[]>;
  return (['npm', 'pypi'] as const).flatMap((kind) => pinned[kind].map((version) => ({ kind, version })));
}

/** Tries the scenarios with one client, one after the other. */
export async function tryClient(client: Client, server: Server, tried: readonly Scenario[]): Promise<Column> {
  const dir = await installClient(client);
  const program =
    client.kind === 'npm'
      ? [process.execPath, join(import.meta.dirname, 'javascript/run.ts')]
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
    env: {
      ...process.env,
      E2B_API_URL: server.apiUrl,
      E2B_SANDBOX_URL: server.apiUrl,
      E2B_API_KEY: server.apiKey,
      PYTHONDONTWRITEBYTECODE: '1',
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

const marks = { passed: '✓', failed: '✗', skipped: '–' };

/** One row for each scenario, one column for each client, and the reasons below. */
export function renderTable(columns: Column[], tried: readonly Scenario[]): string {
  const cells = (of: (column: Column) => string) => columns.map(of).join(' | ');
  const outcome = (column: Column, { name }: Scenario) =>
    column.outcomes.find((candidate) => candidate.scenario === name)!;
  const rows = tried.map(
    (scenario) => `| ${scenario.feature} | ${cells((column) => marks[outcome(column, scenario).status])} |`,
  );
  return [
    `| | ${cells(({ client }) => labelOf(client))} |`,
    `|---|${columns.map(() => '---').join('|')}|`,
    ...rows,
    '',
    ...reasonsOf(columns),
  ].join('\n');
}

/** The same reason of several clients is said once. */
function reasonsOf(columns: Column[]): string[] {
  const byReason = new Map<string, string[]>();
  for (const { client, outcomes } of columns)
    for (const { scenario, status, reason } of outcomes) {
      if (status === 'passed') continue;
      const text = `${marks[status]} ${scenario}: ${reason}`;
      byReason.set(text, [...(byReason.get(text) ?? []), labelOf(client)]);
    }
  return [...byReason].map(([text, clients]) =>
    clients.length === columns.length ? `- ${text}` : `- ${text} (${clients.join(', ')})`,
  );
}

export const renderPage = (columns: Column[]): string => `# Compatibility

Made by \`node test/compat/write-page.ts\` against a running Thaw with real VMs; the tests hold it to what they see.

Unmodified \`e2b\` clients from npm and PyPI, with \`E2B_API_URL\` and \`E2B_SANDBOX_URL\` set to Thaw's address. ✓ passed, ✗ failed, – not
tried, for the reason below.

${renderTable(columns, scenarios)}
`;
