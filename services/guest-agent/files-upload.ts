// Owns POST /files: multipart fields `file` or one application/octet-stream, written as they arrive.
// Refuses to own who may write (http-server.ts).
// Invariant: never more of a file in memory than a chunk; what was written belongs to the caller's user, and a new file
// that could not be written whole is gone.
import { createWriteStream } from 'node:fs';
import { chown, stat, unlink } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createRequire } from 'node:module';
import { basename, dirname } from 'node:path';
import { type Duplex, PassThrough, type Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { ConnectError } from '../../shared/connect-frames.ts';
import { type Caller, guestPath } from './caller.ts';
import { sendJson } from './connect-json.ts';
import { type Metadata, metadataOf, replaceMetadata } from './file-metadata.ts';
import { fileFailure, sendFileError } from './files-routes.ts';
import { makeDirectories } from './filesystem-service.ts';

const maxFilesPerRequest = 10_000;
/** Small files end in the buffers of their streams: the parser alone would open as many as a body holds. */
const maxOpenFiles = 64;

export interface WrittenFile {
  path: string;
  name: string;
  type: 'file';
  metadata?: Metadata;
}

interface Upload {
  caller: Caller;
  /** The query's path: of the one file that is sent, '' when the parts are named. */
  path: string;
  metadata: Metadata;
}

export async function uploadFiles(
  caller: Caller,
  query: URLSearchParams,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = query.get('path') ?? '';
  try {
    const upload = { caller, path, metadata: metadataOf(request) };
    const body = await decoded(request);
    const type = request.headers['content-type']?.split(';')[0]?.trim().toLowerCase();
    const written =
      type === 'multipart/form-data'
        ? await writeMultipart(upload, request, body)
        : [await writeWhole(upload, type, body)];
    sendJson(response, 200, written);
  } catch (error) {
    sendFileError(response, ...fileFailure(error, path));
  }
}

async function decoded(request: IncomingMessage): Promise<Readable> {
  const encoding = request.headers['content-encoding'] ?? 'identity';
  if (encoding === 'identity') return through(request, new PassThrough());
  if (encoding !== 'gzip') throw invalid(`content-encoding ${encoding} is not supported`);
  const { createGunzip } = await import('node:zlib');
  return through(request, createGunzip());
}

/** A failed write ends its stream: that must not be the request, whose connection carries the answer. */
function through(request: IncomingMessage, into: Duplex): Duplex {
  into.on('error', () => {});
  // A client that left must end who reads from `into`, too.
  request.once('error', (error) => into.destroy(error));
  return request.pipe(into);
}

async function writeWhole(upload: Upload, type: string | undefined, body: Readable): Promise<WrittenFile> {
  if (type !== 'application/octet-stream')
    throw invalid('content-type must be multipart/form-data or application/octet-stream');
  if (upload.path === '') throw invalid('the query parameter path is missing');
  return await writeFile(upload, guestPath(upload.caller, upload.path), body);
}

async function writeMultipart(
  upload: Upload,
  request: IncomingMessage,
  body: Readable,
): Promise<WrittenFile[]> {
  const { Busboy } = await loadParser();
  const headers = { ...request.headers, 'content-type': request.headers['content-type']! };
  const parser = new Busboy({ headers, preservePath: true, limits: { files: maxFilesPerRequest } });
  const writes: Promise<WrittenFile>[] = [];
  const targets = new Set<string>();
  const open = new Map<Readable, Promise<unknown>>();
  parser.on('file', (field: string, part: Readable, filename: string) => {
    part.on('error', () => {});
    if (field !== 'file') return void part.resume();
    const write = writePart(upload, filename, part, targets);
    writes.push(write);
    // What comes after a failed write is not waited for: nobody reads that part, and the body would never end.
    open.set(
      part,
      write.catch((error) => parser.destroy(error)).then(() => open.delete(part)),
    );
  });
  parser.once('filesLimit', () => parser.destroy(invalid(`more than ${maxFilesPerRequest} files`)));
  try {
    await feed(body, parser, open);
  } catch (error) {
    // A part whose rest will not come would keep its file open for ever.
    for (const part of open.keys()) part.destroy(error as Error);
    await Promise.allSettled(writes);
    const { code, message } = error as NodeJS.ErrnoException;
    throw code === undefined ? invalid(`malformed multipart body: ${message}`) : error;
  }
  return await Promise.all(writes);
}

/** Gives the parser the body no faster than the files it opens are written. */
async function feed(body: Readable, parser: Writable, open: Map<Readable, Promise<unknown>>): Promise<void> {
  const paced = async function* (chunks: AsyncIterable<Buffer>) {
    for await (const chunk of chunks) {
      yield chunk;
      while (open.size > maxOpenFiles) await Promise.race(open.values());
    }
  };
  await pipeline(body, paced, parser);
}

/** The package is CommonJS: bundled into a module, its calls of `require` look for a global one. */
function loadParser() {
  Object.assign(globalThis, { require: createRequire(import.meta.url) });
  return import('@fastify/busboy');
}

async function writePart(
  upload: Upload,
  filename: string | undefined,
  part: Readable,
  targets: Set<string>,
): Promise<WrittenFile> {
  const given = upload.path || filename || '';
  if (given === '') throw invalid('a file has no name and the query parameter path is missing');
  const path = guestPath(upload.caller, given);
  if (targets.has(path))
    throw invalid(
      upload.path ? 'with the query parameter path only one file can be sent' : `${path} is sent twice`,
    );
  targets.add(path);
  return await writeFile(upload, path, part);
}

async function writeFile(
  { caller: { account }, metadata }: Upload,
  path: string,
  body: Readable,
): Promise<WrittenFile> {
  const facts = await stat(path).catch(() => undefined);
  if (facts?.isDirectory()) throw invalid(`path '${path}' is a directory`);
  if (facts !== undefined && !facts.isFile()) throw invalid(`path '${path}' is not a regular file`);
  await makeDirectories(dirname(path), account);
  try {
    await pipeline(body, createWriteStream(path));
    await chown(path, account.uid, account.gid);
    replaceMetadata(path, metadata);
  } catch (error) {
    // On a full disk the half of it would only be in the way.
    if (facts === undefined) await unlink(path).catch(() => {});
    throw error;
  }
  const written: WrittenFile = { path, name: basename(path), type: 'file' };
  return Object.keys(metadata).length === 0 ? written : { ...written, metadata };
}

const invalid = (message: string) => new ConnectError('invalid_argument', message);
