// Owns the pages of the documentation that list what the code declares: docs/errors.md, docs/metrics.md, docs/openapi.json.
// Run as a program it writes them; a test holds the files to what it would write.
import { writeFile } from 'node:fs/promises';
import { type ErrorKind, errorKinds } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';
import { ownRoutes } from './app.ts';
import type { GatewayContext } from './gateway-context.ts';
import { documentOf } from './openapi.ts';

export const referencePages = {
  'errors.md': renderErrorsPage,
  'metrics.md': renderMetricsPage,
  'openapi.json': renderOpenapi,
} as const;

export const pageUrl = (name: string): URL => new URL(`../../docs/${name}`, import.meta.url);

export function renderErrorsPage(): string {
  const rows = Object.entries<ErrorKind>(errorKinds)
    .sort(([a, x], [b, y]) => x.status - y.status || (a < b ? -1 : 1))
    .map(([code, { status, retryable, title }]) => [`\`${code}\``, status, retryable ? 'yes' : 'no', title]);
  return page(
    'Errors',
    `Every failure of the platform has one of these codes. Thaw's own routes answer with RFC 9457 problem details
(\`application/problem+json\`): \`type\`, \`title\`, \`status\`, \`detail\`, and beside them \`code\`, \`retryable\` and
\`requestId\`. The header \`X-Thaw-Error\` repeats the code. 429 and 503 carry \`Retry-After\` in whole seconds.

The E2B routes answer with \`{ "code": <status>, "message": <detail> }\` and the same header.

A response without \`X-Thaw-Error\` is the function's own, whatever its status. \`X-Thaw-Error: handler-threw\` is set by
the runner when the function's code failed without answering: that too is the function's failure, not the platform's.

"Retry" says whether the same request may succeed if it is sent again unchanged.`,
    ['Code', 'Status', 'Retry', 'What it means and what to do'],
    rows,
  );
}

/** Routes take what they work with from their context only when they are called, but for its parts themselves. */
async function renderOpenapi(): Promise<string> {
  const nothing = { state: {}, templates: {} } as unknown as GatewayContext;
  return `${JSON.stringify(await documentOf((app) => ownRoutes(app, nothing)), null, 2)}\n`;
}

interface DeclaredMetric {
  name: string;
  help: string;
  type: string;
  labelNames: string[];
}

export function renderMetricsPage(): string {
  const rows = Object.values(metrics)
    .map((metric) => declared(metric))
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map(({ name, type, labelNames, help }) => [
      `\`${name}\``,
      type,
      labelNames.map((label) => `\`${label}\``).join(', '),
      help,
    ]);
  return page(
    'Metrics',
    `Served on the admin port at \`/metrics\` in the Prometheus text format. Durations are seconds; histograms have
buckets from 0.25 ms to 10 s. The series of the Node.js process itself (\`process_*\`, \`nodejs_*\`) come with them.

\`outcome\` of an invocation is \`ok\`, \`function-error\`, \`client-gone\` or a code of [the errors page](errors.md);
its \`tier\` is \`none\` when it never got a VM. An \`ok\` means that the function answered, with whatever status.

On the same port, \`/livez\` answers while the process runs, and \`/readyz\` answers 200 when requests should be sent
here, else 503 with the reasons in \`notes\`.`,
    ['Name', 'Kind', 'Labels', 'What it counts'],
    rows,
  );
}

/** prom-client keeps what a metric was declared with on it, but its types do not say so. */
function declared(metric: unknown): DeclaredMetric {
  const { name, help, labelNames } = metric as DeclaredMetric;
  return { name, help, labelNames, type: (metric as object).constructor.name.toLowerCase() };
}

function page(title: string, text: string, head: string[], rows: (string | number)[][]): string {
  const line = (cells: (string | number)[]) => `| ${cells.join(' | ')} |`;
  const note =
    '<!-- Written by services/gateway/reference-pages.ts; a test fails when it is out of date. -->';
  const table = [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n');
  return `${note}\n\n# ${title}\n\n${text}\n\n${table}\n`;
}

if (import.meta.main)
  for (const [name, render] of Object.entries(referencePages)) await writeFile(pageUrl(name), await render());
