// Owns what a request's headers ask of a file's bytes: their coding, one range of them, or nothing if unchanged.
// Refuses to own sending (files-routes.ts).
// Invariant: headers that are malformed ask for nothing: then the whole file is sent as it is.
import type { Stats } from 'node:fs';
import type { IncomingMessage } from 'node:http';

export type Coding = 'identity' | 'gzip';

/**
 * Every `fetch` offers "gzip, deflate, br" for anything, and compressing costs a small guest more than the bytes:
 * a client that means it asks for gzip alone, prefers it, or forbids the file as it is.
 * @returns undefined when the client takes neither.
 */
export function codingFor(header: string | undefined): Coding | undefined {
  const qualities = acceptedCodings(header);
  const anyOther = qualities.get('*');
  const gzip = qualities.get('gzip') ?? qualities.get('x-gzip') ?? anyOther ?? 0;
  const identity = qualities.get('identity') ?? (anyOther === 0 ? 0 : undefined);
  if (identity === 0) return gzip > 0 ? 'gzip' : undefined;
  if (qualities.size === 1 && !qualities.has('*')) return gzip > 0 ? 'gzip' : 'identity';
  return identity !== undefined && gzip > identity ? 'gzip' : 'identity';
}

/** Name of each coding → how much it is wanted, 0 for not at all. */
function acceptedCodings(header: string | undefined): Map<string, number> {
  const qualities = new Map<string, number>();
  for (const item of header?.toLowerCase().split(',') ?? []) {
    const [name, ...parameters] = item.split(';').map((part) => part.trim());
    const quality = parameters.find((parameter) => parameter.startsWith('q='));
    const value = quality === undefined ? 1 : Number(quality.slice(2));
    if (name !== '' && value >= 0 && value <= 1) qualities.set(name!, value);
  }
  return qualities;
}

/** Strong: it changes with every write, as far as the file system's clock can tell writes apart. */
export function entityTag(facts: Stats, coding: Coding): string {
  const parts = [Math.round(facts.mtimeMs * 1000), facts.size, facts.ino].map((part) => part.toString(16));
  return `"${parts.join('-')}${coding === 'gzip' ? '-gzip' : ''}"`;
}

/** RFC 9110, 13.2.2: tags come before dates. @returns the status to answer instead of the file. */
export function preconditionStatus(
  { headers }: IncomingMessage,
  tag: string,
  modifiedAtMs: number,
): 304 | 412 | undefined {
  const modifiedAt = Math.floor(modifiedAtMs / 1000) * 1000;
  const since = (date: string | undefined) => Date.parse(date ?? '');
  if (headers['if-match'] !== undefined) {
    if (!lists(headers['if-match'], tag)) return 412;
  } else if (modifiedAt > since(headers['if-unmodified-since'])) return 412;
  if (headers['if-none-match'] !== undefined) return lists(headers['if-none-match'], tag) ? 304 : undefined;
  return modifiedAt <= since(headers['if-modified-since']) ? 304 : undefined;
}

const lists = (header: string, tag: string): boolean =>
  header.trim() === '*' || header.split(',').some((given) => given.trim().replace(/^W\//, '') === tag);

/** The range the client wants, unless it wants it only of a file that has changed since. */
export function rangeFor(
  { headers }: IncomingMessage,
  tag: string,
  facts: Stats,
): ReturnType<typeof parseRange> {
  const condition = headers['if-range'];
  const unchanged = condition === undefined || condition === tag || condition === facts.mtime.toUTCString();
  return unchanged ? parseRange(headers.range, facts.size) : undefined;
}

/** One range as first and last byte; undefined for none, for several and for what is malformed: then all is sent. */
export function parseRange(
  header: string | undefined,
  sizeBytes: number,
): [number, number] | 'unsatisfiable' | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '');
  if (match === null || (match[1] === '' && match[2] === '')) return undefined;
  const last = sizeBytes - 1;
  if (match[1] === '') {
    const suffix = Number(match[2]);
    return suffix === 0 ? 'unsatisfiable' : [Math.max(0, sizeBytes - suffix), last];
  }
  const first = Number(match[1]);
  const end = match[2] === '' ? last : Math.min(Number(match[2]), last);
  if (match[2] !== '' && Number(match[2]) < first) return undefined;
  return first > last ? 'unsatisfiable' : [first, end];
}
