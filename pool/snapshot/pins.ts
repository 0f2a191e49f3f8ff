// Owns pins: leases that keep segments from collection while a publish or a running clone needs them.
// Refuses to own collection (gc.ts). Invariant: a pin is in the store before its owner relies on it, and runs out by
// itself when its owner dies; `take` returns only when no collection under way could still miss it.
import { Type } from 'typebox';
import { ThawError } from '../../shared/errors.ts';
import { allKeys, type BlobStore, type RequestOptions } from '../store/blob-store.ts';
import { getIfThere, type JsonKind, openJson, sealJson } from './signed-json.ts';
import type { ClusterKey } from './signed-object.ts';
import { nameIn, pinKey, pinsPrefix, sha256Pattern } from './store-keys.ts';
import { clockSkewMs, untilNotAnnounced } from './sweep-announcement.ts';

const schema = Type.Object({
  endsAtMs: Type.Integer(),
  segments: Type.Array(Type.String({ pattern: sha256Pattern.source }), { maxItems: 65_536 }),
});

const kind: JsonKind<typeof schema> = {
  magic: 'THAWPIN1',
  version: 1,
  maxPayloadBytes: 8 * 1024 * 1024,
  schema,
};

export interface Pin {
  readonly owner: string;
  /** Call well before `ttlMs` has passed. @throws ThawError `conflict` when the pin has run out: segments may be gone. */
  renew(options?: RequestOptions): Promise<void>;
  release(options?: RequestOptions): Promise<void>;
}

export interface PinsOptions {
  store: BlobStore;
  clusterKey: ClusterKey;
}

export class Pins {
  readonly #store: BlobStore;
  readonly #key: ClusterKey;

  constructor({ store, clusterKey }: PinsOptions) {
    this.#store = store;
    this.#key = clusterKey;
  }

  /**
   * @param owner a VM's id, or `publish-` and a snapshot's; one pin an owner, a second one replaces the first.
   * @throws ThawError `deadline-exceeded` when a collection of these segments does not end in time; store errors.
   */
  async take(
    owner: string,
    segments: readonly string[],
    ttlMs: number,
    options: RequestOptions = {},
  ): Promise<Pin> {
    let endsAtMs = await this.#write(owner, segments, ttlMs, options);
    await untilNotAnnounced(this.#store, this.#key, new Set(segments), options);
    return {
      owner,
      renew: async (renewal = {}) => {
        if (Date.now() >= endsAtMs) throw new ThawError('conflict', `the pin of ${owner} ran out`);
        endsAtMs = await this.#write(owner, segments, ttlMs, renewal);
      },
      release: (release = {}) => this.#store.delete(pinKey(owner), release),
    };
  }

  /** What live pins name. Pins that ran out are removed; `onExpired` is told their owner. */
  async pinned(
    options: RequestOptions = {},
    onExpired: (owner: string) => void = () => {},
  ): Promise<Set<string>> {
    const pinned = new Set<string>();
    for await (const name of allKeys(this.#store, pinsPrefix, options)) {
      const object = await getIfThere(this.#store, name, options);
      if (!object) continue;
      const pin = openJson(kind, name, this.#key, object);
      if (Date.now() > pin.endsAtMs + clockSkewMs) {
        await this.#store.delete(name, options);
        onExpired(nameIn(name));
      } else {
        for (const sha256 of pin.segments) pinned.add(sha256);
      }
    }
    return pinned;
  }

  async #write(
    owner: string,
    segments: readonly string[],
    ttlMs: number,
    options: RequestOptions,
  ): Promise<number> {
    const endsAtMs = Date.now() + ttlMs;
    const name = pinKey(owner);
    const body = sealJson(kind, name, this.#key, { endsAtMs, segments: [...segments] });
    await this.#store.replace(name, body, options);
    return endsAtMs;
  }
}
