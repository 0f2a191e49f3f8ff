// Owns docs/compatibility.md: how outcomes are shown there, and read again.
// Invariant: every scenario has a row, every client a column, and what did not pass a reason.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Client, labelOf } from './install-client.ts';
import type { Column, Outcome } from './matrix.ts';
import { type Scenario, scenarios } from './scenarios.ts';

export const pagePath = join(import.meta.dirname, '../../docs/compatibility.md');

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

Made by \`node test/compat/write-page.ts\`; the tests hold it to what they see. What needs VMs was tried in real ones, the rest
over agents that are processes of the host.

Unmodified \`e2b\` clients from npm and PyPI, with \`E2B_API_URL\` and \`E2B_SANDBOX_URL\` set to Thaw's address. ✓ passed, ✗ failed, – not
tried, for the reason below.

${renderTable(columns, scenarios).trimEnd()}
`;

export interface Page {
  /** Labels of clients, in the order of their columns. */
  clients: string[];
  features: string[];
  statusOf(client: Client, scenario: Scenario): Outcome['status'] | undefined;
  /** As they are shown, without the clients they are of. */
  reasons: { status: Outcome['status']; scenario: string; reason: string }[];
}

export async function readPage(): Promise<Page> {
  const lines = (await readFile(pagePath, 'utf8')).split('\n');
  const rows = lines.filter((line) => line.startsWith('| ')).map(cellsOf);
  const [head, ...body] = rows as [string[], ...string[][]];
  return {
    clients: head.slice(1),
    features: body.map(([feature]) => feature!),
    statusOf(client, { feature }) {
      const mark = body.find(([first]) => first === feature)?.[head.indexOf(labelOf(client))];
      return mark === undefined ? undefined : statusBy(mark);
    },
    reasons: lines.flatMap((line) => {
      const [, mark, scenario, reason] = /^- (\S) ([a-z]+): (.*?)(?: \([^()]*\))?$/.exec(line) ?? [];
      const status = mark === undefined ? undefined : statusBy(mark);
      return status === undefined ? [] : [{ status, scenario: scenario!, reason: reason! }];
    }),
  };
}

const cellsOf = (line: string): string[] =>
  line
    .split('|')
    .slice(1, -1)
    .map((cell) => cell.trim());

const statusBy = (mark: string): Outcome['status'] | undefined =>
  (Object.keys(marks) as Outcome['status'][]).find((status) => marks[status] === mark);
