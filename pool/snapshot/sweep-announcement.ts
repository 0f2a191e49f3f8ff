// Owns the collector's announcement: which segments it is about to remove, in the store where publishers look.
// Invariant: with pins it makes a handshake. A publisher pins, then reads the announcement; the collector announces, then
// reads the pins. Whoever comes second sees the other, so no segment is removed that a publisher counts on.
import { setTimeout as delay } from 'node:timers/promises';
import { Type } from 'typebox';
import type { BlobStore, RequestOptions } from '../store/blob-store.ts';
import { runRequest } from '../store/request.ts';
import { getIfThere, type JsonKind, openJson, sealJson } from './signed-json.ts';
import type { ClusterKey } from './signed-object.ts';
import { sha256Pattern, sweepKey } from './store-keys.ts';

const schema = Type.Object({
  id: Type.String({ pattern: '^[0-9a-f]{16}$' }),
  endsAtMs: Type.Integer(),
  segments: Type.Array(Type.String({ pattern: sha256Pattern.source }), { maxItems: 10_000 }),
});

const kind: JsonKind<typeof schema> = {
  magic: 'THAWSWEP',
  version: 1,
  maxPayloadBytes: 1024 * 1024,
  schema,
};

export interface Announcement {
  id: string;
  /** The collector removes nothing after this. */
  endsAtMs: number;
  segments: string[];
}

/** Clocks of nodes may differ by this much. */
export const clockSkewMs = 60_000;
const pollMs = 250;

/** @returns false when another collector's announcement stands. */
export async function announce(
  store: BlobStore,
  key: ClusterKey,
  announcement: Announcement,
  options: RequestOptions = {},
): Promise<boolean> {
  const body = sealJson(kind, sweepKey, key, announcement);
  if ((await store.put(sweepKey, body, options)) === 'created') return true;
  const standing = await readAnnouncement(store, key, options);
  if (standing && Date.now() < standing.endsAtMs + clockSkewMs) return false;
  // Its collector died. Of two that find that out, one puts first.
  await store.delete(sweepKey, options);
  return (await store.put(sweepKey, body, options)) === 'created';
}

/** @returns whether it still stands, so that its collector may go on. */
export async function stands(
  store: BlobStore,
  key: ClusterKey,
  announcement: Announcement,
  options: RequestOptions = {},
): Promise<boolean> {
  if (Date.now() >= announcement.endsAtMs) return false;
  return (await readAnnouncement(store, key, options))?.id === announcement.id;
}

export async function withdraw(
  store: BlobStore,
  key: ClusterKey,
  announcement: Announcement,
  options: RequestOptions = {},
): Promise<void> {
  const standing = await readAnnouncement(store, key, options);
  if (standing?.id === announcement.id) await store.delete(sweepKey, options);
}

/** Waits until no announcement stands that names one of `segments`. @throws ThawError `deadline-exceeded`. */
export function untilNotAnnounced(
  store: BlobStore,
  key: ClusterKey,
  segments: ReadonlySet<string>,
  options: RequestOptions,
): Promise<void> {
  return runRequest('waiting for the collection under way', options, async ({ signal }) => {
    for (;;) {
      const standing = await readAnnouncement(store, key, { signal });
      const over = !standing || Date.now() > standing.endsAtMs + clockSkewMs;
      if (over || !standing.segments.some((sha256) => segments.has(sha256))) return;
      await delay(pollMs, undefined, { signal });
    }
  });
}

async function readAnnouncement(
  store: BlobStore,
  key: ClusterKey,
  options: RequestOptions,
): Promise<Announcement | undefined> {
  const object = await getIfThere(store, sweepKey, options);
  return object && openJson(kind, sweepKey, key, object);
}
