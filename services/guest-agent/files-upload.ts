// Owns POST /files: multipart fields `file` or one application/octet-stream, written as they arrive.
// Refuses to own who may write (http-server.ts).
// Invariant: never more of a file in memory than a chunk; what was written belongs to the caller's user.
import { createWriteStream } from 'node:fs';
import { chown, stat } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createRequire } from 'node:module';
import { basename, dirname } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { ConnectError } from '../../shared/connect-frames.ts';
import { type Caller, guestPath } from './caller.ts';
import { sendJson } from './connect-json.ts';
import { fileFailure, sendFileError } from './files-routes.ts';
import { makeDirectories } from './filesystem-service.ts';

const maxFilesPerRequest = 10_000;

interface WrittenFile {
  path: string;
  name: string;
  type: 'file';
}

export async function uploadFiles(
  caller: Caller,
  query: URLSearchParams,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const path = query.get('path') ?? '';
  try {
    const body = await decoded(request);
    const type = request.headers['content-type']?.split(';')[0]?.trim().toLowerCase();
    const written =
      type === 'multipart/form-data'
        ? await writeMultipart(caller, path, request, body)
        : [await writeWhole(caller, path, type, body)];
    sendJson(response, 200, written);
  } catch (error) {
    // What is left of the body would otherwise be read as the next request.
    response.setHeader('connection', 'close');
    sendFileError(response, ...fileFailure(error, path));
  }
}

async function decoded(request: IncomingMessage): Promise<Readable> {
  const encoding = request.headers['content-encoding'] ?? 'identity';
  if (encoding === 'identity') return request;
  if (encoding !== 'gzip') throw invalid(`content-encoding ${encoding} is not supported`);
  const { createGunzip } = await import('node:zlib');
  const gunzip = createGunzip();
  gunzip.on('error', () => {});
  // A broken archive or a client that left must end the reader of `gunzip`, too.
  pipeline(request, gunzip).catch((error) => gunzip.destroy(error));
  return gunzip;
}

async function writeWhole(
  caller: Caller,
  path: string,
  type: string | undefined,
  body: Readable,
): Promise<WrittenFile> {
  if (type !== 'application/octet-stream')
    throw invalid('content-type must be multipart/form-data or application/octet-stream');
  if (path === '') throw invalid('the query parameter path is missing');
  return await writeFile(caller, path, body);
}

async function writeMultipart(
  caller: Caller,
  path: string,
  request: IncomingMessage,
  body: Readable,
): Promise<WrittenFile[]> {
  const { Busboy } = await loadParser();
  const headers = { ...request.headers, 'content-type': request.headers['content-type']! };
  const parser = new Busboy({ headers, preservePath: true, limits: { files: maxFilesPerRequest } });
  const writes: Promise<WrittenFile>[] = [];
  parser.on('file', (field: string, part: Readable, filename: string) => {
    part.on('error', () => {});
    if (field !== 'file') return void part.resume();
    const write = writePart(caller, path, filename, part, writes.length);
    // The failed write's part must be read on, or the parser would never reach the end of the body.
    write.catch(() => part.resume());
    writes.push(write);
  });
  parser.once('filesLimit', () => parser.destroy(invalid(`more than ${maxFilesPerRequest} files`)));
  await pipeline(body, parser).catch((error: NodeJS.ErrnoException) => {
    throw error.code === undefined ? invalid(`malformed multipart body: ${error.message}`) : error;
  });
  return await Promise.all(writes);
}

/** The package is CommonJS: bundled into a module, its calls of `require` look for a global one. */
function loadParser() {
  Object.assign(globalThis, { require: createRequire(import.meta.url) });
  return import('@fastify/busboy');
}

async function writePart(
  caller: Caller,
  path: string,
  filename: string | undefined,
  part: Readable,
  index: number,
): Promise<WrittenFile> {
  if (path !== '' && index > 0) throw invalid('with the query parameter path only one file can be sent');
  const target = path || filename || '';
  if (target === '') throw invalid('a file has no name and the query parameter path is missing');
  return await writeFile(caller, target, part);
}

async function writeFile(caller: Caller, given: string, body: Readable): Promise<WrittenFile> {
  const { uid, gid } = caller.account;
  const path = guestPath(caller, given);
  const facts = await stat(path).catch(() => undefined);
  if (facts?.isDirectory()) throw invalid(`path '${path}' is a directory`);
  if (facts !== undefined && !facts.isFile()) throw invalid(`path '${path}' is not a regular file`);
  await makeDirectories(dirname(path), caller.account);
  await pipeline(body, createWriteStream(path));
  await chown(path, uid, gid);
  return { path, name: basename(path), type: 'file' };
}

const invalid = (message: string) => new ConnectError('invalid_argument', message);
