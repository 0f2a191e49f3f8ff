// Owns a file's metadata: words a client sends as `X-Metadata-KEY` headers, kept as `user.e2b.KEY` attributes.
// Invariant: a file has exactly the metadata of its last upload, and attributes of other tools are neither shown nor lost.
import type { IncomingMessage } from 'node:http';
import { ConnectError } from '../../shared/connect-frames.ts';
import { listAttributes, readAttribute, removeAttribute, writeAttribute } from './extended-attributes.ts';

export type Metadata = Record<string, string>;

const headerPrefix = 'x-metadata-';
const attributePrefix = 'user.e2b.';
/** The kernel's limit for a name, without the prefix. */
const maxKeyBytes = 246;
/** Keys with their prefix and values together: what a file system surely has room for. */
const maxTotalBytes = 4096;
const printable = /^[\x20-\x7e]*$/;

/** @throws ConnectError `invalid_argument` for what cannot be kept. */
export function metadataOf(request: IncomingMessage): Metadata {
  const entries: [key: string, value: string][] = [];
  let sizeBytes = 0;
  for (const [header, values] of Object.entries(request.headersDistinct)) {
    if (!header.startsWith(headerPrefix)) continue;
    const key = header.slice(headerPrefix.length);
    // Of a header that was sent twice the first counts.
    const value = values![0]!;
    if (key === '' || !printable.test(key) || !printable.test(value))
      throw invalid('metadata keys and values must be printable US-ASCII, keys not empty');
    if (key.length > maxKeyBytes) throw invalid(`a metadata key may have ${maxKeyBytes} bytes`);
    sizeBytes += attributePrefix.length + key.length + value.length;
    entries.push([key, value]);
  }
  if (sizeBytes > maxTotalBytes) throw invalid(`the metadata of a file may have ${maxTotalBytes} bytes`);
  // Not by assignment: a key may be called __proto__.
  return Object.fromEntries(entries);
}

/** undefined when the file has none. */
export function readMetadata(path: string): Metadata | undefined {
  const keys = metadataKeys(path);
  if (keys.length === 0) return undefined;
  return Object.fromEntries(keys.map((key) => [key, readAttribute(path, attributePrefix + key)]));
}

/** Keys that are not in `metadata` are removed. */
export function replaceMetadata(path: string, metadata: Metadata): void {
  for (const key of metadataKeys(path))
    if (!Object.hasOwn(metadata, key)) removeAttribute(path, attributePrefix + key);
  for (const [key, value] of Object.entries(metadata)) writeAttribute(path, attributePrefix + key, value);
}

function metadataKeys(path: string): string[] {
  const own = listAttributes(path).filter((name) => name.startsWith(attributePrefix));
  return own.map((name) => name.slice(attributePrefix.length));
}

const invalid = (message: string) => new ConnectError('invalid_argument', message);
