// Owns turning an upload into a checked archive: a plain tar on disk; a bundle is one named by its SHA-256, with a manifest.
// Refuses to own what happens to it. Invariant: the stored tar is written anew from admitted entries, so nothing the
// checks did not see can be in it; memory use does not depend on the upload's size.
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { type Extract, extract, type Header, type Pack, pack } from 'tar-stream';
import { ThawError } from '../../shared/errors.ts';
import type { ResolvedManifest } from '../../shared/function-manifest.ts';
import { type AdmittedEntry, BundleLayout } from './bundle-layout.ts';
import { manifestOf } from './bundle-manifest.ts';
import type { GatewayConfig } from './gateway-config.ts';

export interface Bundle {
  sha256: string;
  sizeBytes: number;
  path: string;
  manifest: ResolvedManifest;
}

type Entry = Extract extends AsyncIterable<infer E> ? E : never;

export type BundleLimits = Pick<
  GatewayConfig,
  'bundleDir' | 'maxBundleBytes' | 'maxBundleUnpackedBytes' | 'maxBundleEntries'
>;

export const incomingPrefix = 'incoming-';
export const bundlePathOf = (bundleDir: string, sha256: string): string => join(bundleDir, `${sha256}.tar`);

const manifestName = 'thaw.json';
const maxManifestBytes = 64 * 1024;
/** Equal content makes an equal hash, whenever it was packed; 1980 is what zip-based tools still accept. */
const fixedMtime = new Date(315_532_800_000);

/**
 * @param upload tar or tar.gz, told apart by its first bytes.
 * @throws ThawError `bad-bundle` | `bad-manifest` | `body-too-large` | `no-space`.
 */
export async function receiveBundle(upload: Readable, name: string, limits: BundleLimits): Promise<Bundle> {
  await mkdir(limits.bundleDir, { recursive: true });
  const incoming = join(limits.bundleDir, `${incomingPrefix}${randomUUID()}.tar`);
  try {
    const layout = new BundleLayout(limits.maxBundleEntries);
    const { manifestText, ...written } = await rewrite(upload, incoming, layout, limits, 'bundle');
    const manifest = manifestOf(name, manifestText, layout);
    await flushToDisk(incoming);
    const path = bundlePathOf(limits.bundleDir, written.sha256);
    await rename(incoming, path);
    return { ...written, path, manifest };
  } catch (error) {
    await rm(incoming, { force: true });
    throw asBundleError(error);
  }
}

/**
 * Files as they are, with their modes and times, as a plain tar at `path`.
 * @throws ThawError `bad-bundle` | `body-too-large` | `no-space`.
 */
export async function receiveArchive(upload: Readable, path: string, limits: BundleLimits): Promise<void> {
  await mkdir(limits.bundleDir, { recursive: true });
  const incoming = join(limits.bundleDir, `${incomingPrefix}${randomUUID()}.tar`);
  try {
    await rewrite(upload, incoming, new BundleLayout(limits.maxBundleEntries), limits, 'files');
    await flushToDisk(incoming);
    await rename(incoming, path);
  } catch (error) {
    await rm(incoming, { force: true });
    throw asBundleError(error);
  }
}

/** A bundle's files are made equal for equal content; other files keep what they have. */
type Style = 'bundle' | 'files';

/** Copies every admitted entry into a new tar. Three flows run at once and end together: in, through, out. */
async function rewrite(
  upload: Readable,
  path: string,
  layout: BundleLayout,
  limits: BundleLimits,
  style: Style,
) {
  // Opened before anything can fail: a stream that opens it by itself may do so after a failure has been cleaned up.
  const file = await open(path, 'wx', 0o600);
  const incoming = extract();
  const outgoing = pack();
  const hash = createHash('sha256');
  let sizeBytes = 0;
  const chunks = limited(
    // A request that is destroyed takes its answer with it: what is left unread is the route's to discard.
    gunzipped(limited(upload.iterator({ destroyOnReturn: false }), limits.maxBundleBytes, 'the upload')),
    limits.maxBundleUnpackedBytes,
    'the unpacked archive',
  );
  const reading = feed(chunks, incoming);
  const writing = pipeline(
    outgoing as unknown as AsyncIterable<Buffer>,
    async function* (packed: AsyncIterable<Buffer>) {
      for await (const chunk of packed) {
        hash.update(chunk);
        sizeBytes += chunk.length;
        yield chunk;
      }
    },
    file.createWriteStream(),
  );
  const copying = copyEntries(incoming, outgoing, layout, style);
  for (const flow of [reading, writing, copying])
    flow.catch((error) => {
      incoming.destroy(error);
      outgoing.destroy(error);
    });
  const results = await Promise.allSettled([reading, copying, writing]);
  const failed = results.filter((result) => result.status === 'rejected');
  // The first cause in flow order; the others are its consequences. An expected refusal beats a stream's own words.
  const cause = failed.find((result) => result.reason instanceof ThawError) ?? failed[0];
  if (cause) throw cause.reason;
  const manifestText = await copying;
  return { sha256: hash.digest('hex'), sizeBytes, manifestText };
}

async function feed(chunks: AsyncIterable<Buffer>, sink: Extract): Promise<void> {
  const ended = new Promise<void>((resolve, reject) => {
    sink.once('finish', resolve);
    sink.once('error', reject);
    sink.once('close', () => reject(new Error('the archive was not read to its end')));
  });
  ended.catch(() => {});
  for await (const chunk of chunks) {
    if (sink.destroyed) break;
    if (!sink.write(chunk)) await Promise.race([once(sink, 'drain'), ended]);
  }
  sink.end(undefined);
  await ended;
}

const once = (emitter: NodeJS.EventEmitter, event: string): Promise<void> =>
  new Promise((resolve) => emitter.once(event, () => resolve()));

async function copyEntries(
  incoming: Extract,
  outgoing: Pack,
  layout: BundleLayout,
  style: Style,
): Promise<string | undefined> {
  let manifestText: string | undefined;
  let entries = 0;
  for await (const entry of incoming) {
    entries++;
    const admitted = layout.admit(entry.header);
    if (admitted === undefined) entry.resume();
    else if (style === 'bundle' && admitted.path === manifestName)
      manifestText = await copyManifest(entry, admitted, outgoing);
    else await copyEntry(entry, admitted, outgoing, style);
  }
  layout.close();
  // A directory without anything in it can be copied, but is no bundle.
  if ((style === 'bundle' ? layout.fileCount : entries) === 0)
    throw new ThawError('bad-bundle', 'the archive holds no files');
  outgoing.finalize();
  return manifestText;
}

async function copyEntry(entry: Entry, admitted: AdmittedEntry, outgoing: Pack, style: Style): Promise<void> {
  if (admitted.kind === 'file') {
    const sink = outgoing.entry(headerOf(entry, admitted, entry.header.size, style));
    await pipeline(entry as unknown as NodeJS.ReadableStream, sink as unknown as NodeJS.WritableStream);
    return;
  }
  entry.resume();
  outgoing.entry(headerOf(entry, admitted, 0, style));
}

async function copyManifest(entry: Entry, admitted: AdmittedEntry, outgoing: Pack): Promise<string> {
  const sizeBytes = entry.header.size;
  if (admitted.kind !== 'file' || sizeBytes > maxManifestBytes)
    throw new ThawError('bad-manifest', `thaw.json must be a file of at most ${maxManifestBytes} bytes`);
  const chunks: Buffer[] = [];
  for await (const chunk of entry as AsyncIterable<Buffer>) chunks.push(chunk);
  const content = Buffer.concat(chunks);
  outgoing.entry(headerOf(entry, admitted, content.length, 'bundle'), content);
  return content.toString('utf8');
}

function headerOf(
  entry: Entry,
  admitted: AdmittedEntry,
  sizeBytes: number,
  style: Style,
): Partial<Header> & { name: string } {
  const executable = admitted.kind === 'directory' || (entry.header.mode & 0o100) !== 0;
  return {
    name: admitted.kind === 'directory' ? `${admitted.path}/` : admitted.path,
    type: admitted.kind,
    ...(admitted.linkname === undefined ? {} : { linkname: admitted.linkname }),
    size: sizeBytes,
    ...(style === 'files'
      ? { mode: entry.header.mode & 0o777, mtime: entry.header.mtime ?? fixedMtime }
      : { mode: executable ? 0o755 : 0o644, mtime: fixedMtime }),
    uid: 0,
    gid: 0,
  };
}

async function* limited(
  chunks: AsyncIterable<Buffer>,
  maxBytes: number,
  what: string,
): AsyncGenerator<Buffer> {
  let seenBytes = 0;
  for await (const chunk of chunks) {
    seenBytes += chunk.length;
    if (seenBytes > maxBytes)
      throw new ThawError('body-too-large', `${what} is larger than the limit of ${maxBytes} bytes`);
    yield chunk;
  }
}

async function* gunzipped(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const iterator = chunks[Symbol.asyncIterator]();
  let head: Buffer = Buffer.alloc(0);
  while (head.length < 2) {
    const next = await iterator.next();
    if (next.done) break;
    head = Buffer.concat([head, next.value]);
  }
  const whole = continued(head, iterator);
  if (head[0] !== 0x1f || head[1] !== 0x8b) {
    yield* whole;
    return;
  }
  const gunzip = createGunzip();
  const feeding = pipeline(Readable.from(whole), gunzip);
  feeding.catch(() => {});
  yield* gunzip as AsyncIterable<Buffer>;
  await feeding;
}

async function* continued(head: Buffer, rest: AsyncIterator<Buffer>): AsyncGenerator<Buffer> {
  try {
    if (head.length > 0) yield head;
    for (let next = await rest.next(); !next.done; next = await rest.next()) yield next.value;
  } finally {
    // Lets go of the upload also when the archive ended early.
    await rest.return?.();
  }
}

async function flushToDisk(path: string): Promise<void> {
  await using file = await open(path, 'r+');
  await file.sync();
}

function asBundleError(error: unknown): unknown {
  if (error instanceof ThawError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new ThawError('no-space', 'the disk that keeps bundles is full', { cause: error });
  if (code === 'ECONNRESET' || code === 'ABORT_ERR')
    return new ThawError('bad-request', 'the upload ended before its end', { cause: error });
  if (code !== undefined && /^E[A-Z]+$/.test(code)) return error;
  return new ThawError('bad-bundle', `not a readable tar or tar.gz archive: ${message}`, { cause: error });
}
