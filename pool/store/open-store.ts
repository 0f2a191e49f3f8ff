// Owns turning a store's address into a store with everything around it that a caller should not have to think of.
// Invariant: from the outside in: hedges, retries, limit, breaker, metrics; so every single request is measured, and an
// open breaker ends the retries.
import { fileURLToPath } from 'node:url';
import { ThawError } from '../../shared/errors.ts';
import type { BlobStore } from './blob-store.ts';
import { Breaker, type BreakerOptions } from './breaker.ts';
import { DirectoryStore } from './directory-store.ts';
import { type HedgeOptions, hedged } from './hedged.ts';
import { type LimitOptions, limited } from './limited.ts';
import { measured } from './measured.ts';
import { retried } from './retried.ts';
import type { RetryPolicy } from './retry-policy.ts';
import { WrappedStore } from './wrapped-store.ts';

export interface OpenStoreOptions {
  /** Address of an S3 server other than AWS. */
  s3Endpoint?: string;
  s3Region?: string;
  s3Credentials?: { accessKeyId: string; secretAccessKey: string };
  retry?: RetryPolicy;
  breaker?: BreakerOptions;
  hedge?: HedgeOptions;
  limit?: LimitOptions;
}

/** @param url `file:///DIR` or `s3://BUCKET/PREFIX`. @throws ThawError `bad-config` | `store-refused` | `no-space`. */
export async function openStore(url: string, options: OpenStoreOptions = {}): Promise<BlobStore> {
  return withResilience(await openAdapter(url, options), options);
}

export function withResilience(adapter: BlobStore, options: OpenStoreOptions = {}): BlobStore {
  const breaker = new Breaker(options.breaker);
  const layers = [
    measured(),
    breaker.around,
    limited(options.limit),
    retried(options.retry),
    hedged(options.hedge),
  ];
  return layers.reduce<BlobStore>((inner, around) => new WrappedStore(inner, around), adapter);
}

async function openAdapter(url: string, options: OpenStoreOptions): Promise<BlobStore> {
  if (url.startsWith('file:///')) return DirectoryStore.open(directoryOf(url));
  const parts = /^s3:\/\/([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:\/([A-Za-z0-9._/-]*))?$/.exec(url);
  if (!parts) throw badUrl(url);
  const prefix = (parts[2] ?? '').replace(/\/+$/, '');
  if (prefix.startsWith('/') || prefix.includes('//') || prefix.split('/').includes('..')) throw badUrl(url);
  const { S3Store } = await import('./s3-store.ts');
  return new S3Store({
    bucket: parts[1]!,
    prefix,
    ...(options.s3Endpoint ? { endpoint: options.s3Endpoint } : {}),
    ...(options.s3Region ? { region: options.s3Region } : {}),
    ...(options.s3Credentials ? { credentials: options.s3Credentials } : {}),
  });
}

function directoryOf(url: string): string {
  try {
    return fileURLToPath(url).replace(/(?<=.)\/+$/, '');
  } catch {
    throw badUrl(url);
  }
}

const badUrl = (url: string) =>
  new ThawError('bad-config', `THAW_STORE: ${url} is neither file:///DIR nor s3://BUCKET/PREFIX`);
