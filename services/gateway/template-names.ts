// Owns what templates and their snapshots are called: NAME, NAME:TAG, and the snapshot's name that says both.
// Everything here is pure. Invariant: a snapshot's name under `template/` is a template's, and of no other snapshot.
import { snapshotIdPattern, templateIdPattern } from '../../shared/ids.ts';
import type { SnapshotFacts } from './node-client.ts';
import { defaultTag } from './template-record.ts';

/** Of one namespace or none. Short enough that a snapshot's name can hold it with a tag and a build's id. */
export const templateNamePattern = /^(?=.{1,48}$)([A-Za-z0-9][A-Za-z0-9_-]*\/)?[A-Za-z0-9][A-Za-z0-9_-]*$/;
export const tagPattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$/;
export const templatesPrefix = 'template/';

/** What a snapshot's name says of the template that it is the content of. */
export interface SnapshotOrigin {
  name: string;
  tag: string;
  buildId: string;
}

export const snapshotNameOf = ({ name, tag, buildId }: SnapshotOrigin): string =>
  `${templatesPrefix}${name}:${tag}/${buildId}`;

/** Undefined for any snapshot that is no template's. */
export function originOf({ names, kind }: Pick<SnapshotFacts, 'names' | 'kind'>): SnapshotOrigin | undefined {
  const found = kind === 'sandbox' ? names.find(isTemplatesName) : undefined;
  const match = found && /^template\/(.+):([^:/]+)\/([0-9a-f-]{36})$/.exec(found);
  return match ? { name: match[1]!, tag: match[2]!, buildId: match[3]! } : undefined;
}

/** True for names that only snapshots of templates may have. */
export const isTemplatesName = (name: string): boolean => name.startsWith(templatesPrefix);

/** True for names that always mean something else. */
export const isReserved = (name: string): boolean =>
  name === 'base' || templateIdPattern.test(name) || snapshotIdPattern.test(name);

/** NAME:TAG, with the tag that is meant when there is none. */
export function splitName(word: string): { name: string; tag: string } {
  const colon = word.lastIndexOf(':');
  return colon < 0
    ? { name: word, tag: defaultTag }
    : { name: word.slice(0, colon), tag: word.slice(colon + 1) };
}
