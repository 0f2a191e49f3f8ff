// Owns listing sandboxes: filters, order and pages. Pure. Invariant: a page's token names the last row shown, so rows
// that come or go in between neither repeat nor hide others.
import { ThawError } from '../../../shared/errors.ts';
import { integerIn, listIn, oneOfIn, type Query, textIn } from '../query-values.ts';
import type { SandboxRecord } from '../state/state-store.ts';

const maxPageSize = 100;
const shownStates = ['running', 'paused'] as const;

/** @throws ThawError `bad-request` naming the parameter. */
export function listSandboxes(
  records: SandboxRecord[],
  query: Query,
): { page: SandboxRecord[]; nextToken: string | undefined } {
  const descending = oneOfIn(query, 'order', ['asc', 'desc']) !== 'asc';
  const matches = filterOf(query);
  const after = cursorOf(textIn(query, 'nextToken'));
  const rows = records
    .filter(matches)
    .sort(compare)
    .filter((row) => after === undefined || (descending ? compare(row, after) < 0 : compare(row, after) > 0));
  if (descending) rows.reverse();
  const limit = Math.min(integerIn(query, 'limit', 1, Number.MAX_SAFE_INTEGER) ?? maxPageSize, maxPageSize);
  const page = rows.slice(0, limit);
  return { page, nextToken: rows.length > limit ? tokenOf(page.at(-1)!) : undefined };
}

type Position = Pick<SandboxRecord, 'startedAtMs' | 'sandboxId'>;

const compare = (a: Position, b: Position): number =>
  a.startedAtMs - b.startedAtMs || (a.sandboxId < b.sandboxId ? -1 : a.sandboxId > b.sandboxId ? 1 : 0);

function filterOf(query: Query): (record: SandboxRecord) => boolean {
  const states = statesOf(listIn(query, 'state'));
  const metadata = metadataOf(textIn(query, 'metadata'));
  const startedAfterMs = startedAfterOf(textIn(query, 'startedAfter'));
  const template = textIn(query, 'template');
  return (record) =>
    states.has(record.state) &&
    metadata.every(([key, value]) => record.metadata[key] === value) &&
    record.startedAtMs > startedAfterMs &&
    (template === undefined || [record.templateId, record.alias, record.snapshotId].includes(template));
}

function statesOf(states: string[]): Set<string> {
  if (states.length === 0) return new Set(shownStates);
  for (const state of states)
    if (!(shownStates as readonly string[]).includes(state))
      throw new ThawError('bad-request', `state: expected ${shownStates.join(' or ')}`);
  return new Set(states);
}

/** Keys and values were percent-encoded before the form was, so each is decoded once more. */
function metadataOf(given: string | undefined): [string, string][] {
  if (given === undefined) return [];
  try {
    return [...new URLSearchParams(given)].map(([key, value]) => [
      decodeURIComponent(key),
      decodeURIComponent(value),
    ]);
  } catch {
    throw new ThawError('bad-request', 'metadata: expected a form of percent-encoded keys and values');
  }
}

function startedAfterOf(given: string | undefined): number {
  if (given === undefined) return Number.NEGATIVE_INFINITY;
  const timeMs = Date.parse(given);
  if (Number.isNaN(timeMs)) throw new ThawError('bad-request', 'startedAfter: expected an RFC 3339 time');
  return timeMs;
}

const tokenOf = ({ startedAtMs, sandboxId }: Position): string =>
  Buffer.from(`${startedAtMs} ${sandboxId}`).toString('base64url');

function cursorOf(token: string | undefined): Position | undefined {
  if (token === undefined) return undefined;
  const match = /^([0-9]{1,15}) ([0-9a-z]{1,32})$/.exec(Buffer.from(token, 'base64url').toString());
  if (match === null) throw new ThawError('bad-request', 'nextToken: not one of ours');
  return { startedAtMs: Number(match[1]), sandboxId: match[2]! };
}
