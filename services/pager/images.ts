// Owns how the pager gets at images: manifests from local files, verified; segments from the node's own copy, then the
// store. Refuses to own serving them. Invariant: nothing of a manifest is used that the cluster key did not sign.
import { readFile } from 'node:fs/promises';
import type { LoadedImage, PagerOptions } from '../../pool/pagefs/pager.ts';
import type { PagerSettings } from '../../pool/pagefs/run-pager.ts';
import { FrameReader, type FrameTier, storeTier } from '../../pool/snapshot/frame-reader.ts';
import type { Manifest } from '../../pool/snapshot/manifest.ts';
import { decodeManifest } from '../../pool/snapshot/manifest-codec.ts';
import { ClusterKey } from '../../pool/snapshot/signed-object.ts';
import { lineageIndexKey } from '../../pool/snapshot/store-keys.ts';
import type { BlobStore } from '../../pool/store/blob-store.ts';
import { type OpenStoreOptions, openStore } from '../../pool/store/open-store.ts';
import { ThawError } from '../../shared/errors.ts';

export interface ImageSettings extends PagerSettings {
  storeUrl: string;
  s3Endpoint?: string;
  /** A directory store of this node that may hold segments, too; asked first. */
  localStoreUrl?: string;
  /** 32 bytes in hex. */
  clusterKey: string;
}

const warmUpTimeoutMs = 2_000;

export interface Images {
  load: PagerOptions['load'];
  close(): Promise<void>;
}

export async function openImages(
  settings: ImageSettings,
  around: (tier: FrameTier) => FrameTier = (tier) => tier,
): Promise<Images> {
  const key = new ClusterKey(Buffer.from(settings.clusterKey, 'hex'));
  const options: OpenStoreOptions = settings.s3Endpoint ? { s3Endpoint: settings.s3Endpoint } : {};
  const store = await openStore(settings.storeUrl, options);
  const local = settings.localStoreUrl ? await openStore(settings.localStoreUrl) : undefined;
  await warmUp(store);
  const tiers = tiersOf(local, around(storeTier(store)));
  return {
    load: async ({ snapshotId, image }, manifestPath) =>
      loadedImage(decodeManifest(await readManifest(manifestPath), snapshotId, key), image, tiers),
    async close() {
      await Promise.all([store.close(), local?.close()]);
    },
  };
}

/** A process's first request costs far more than its later ones: parts are loaded, credentials found, a connection made. */
async function warmUp(store: BlobStore): Promise<void> {
  // Whether the store answers is for who needs it to find out.
  await store.head(lineageIndexKey, { timeoutMs: warmUpTimeoutMs }).catch(() => {});
}

/** The store twice: bytes that were wrong once may have been damaged on the way, and are fetched once more. */
const tiersOf = (local: BlobStore | undefined, store: FrameTier): FrameTier[] => [
  ...(local ? [storeTier(local, 'local')] : []),
  store,
  store,
];

const loadedImage = (
  manifest: Manifest,
  image: keyof Manifest['images'],
  tiers: FrameTier[],
): LoadedImage => ({
  image: manifest.images[image],
  frames: manifest.frames,
  reader: new FrameReader({ manifest, tiers }),
});

async function readManifest(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new ThawError('snapshot-damaged', `the manifest: ${(error as Error).message}`, { cause: error });
  }
}
