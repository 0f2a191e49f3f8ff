// Owns GET /files: a file's bytes, and the words of a failure on any route of files.
// Refuses to own uploads (files-upload.ts), what headers ask (content-negotiation.ts) and who may read (http-server.ts).
// Invariant: never more of a file in memory than one chunk; errors are `{code,message}` with the status as code.
import { createReadStream, type ReadStream, type Stats } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { basename } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { ConnectError, connectStatus } from '../../shared/connect-frames.ts';
import type { Caller } from './caller.ts';
import { guestPath } from './caller.ts';
import { sendJson } from './connect-json.ts';
import { codingFor, entityTag, preconditionStatus, rangeFor } from './content-negotiation.ts';

export function sendFileError(response: ServerResponse, status: number, message: string): void {
  sendJson(response, status, { code: status, message });
}

/** @returns the HTTP status and words for a failure while a file was read or written. */
export function fileFailure(error: unknown, path: string): [status: number, message: string] {
  if (error instanceof ConnectError) return [statusOf(error), error.message];
  const code = (error as NodeJS.ErrnoException).code ?? '';
  if (code.startsWith('Z_')) return [400, 'the body is not valid gzip'];
  const words = pathWords[code];
  if (words !== undefined) return [code === 'ENOENT' ? 404 : 400, `path '${path}' ${words}`];
  switch (code) {
    case 'ECONNRESET':
    case 'ERR_STREAM_PREMATURE_CLOSE':
      return [400, 'the body ended early'];
    case 'ENOSPC':
    case 'EDQUOT':
      return [507, 'not enough disk space available'];
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
    case 'ETXTBSY':
    case 'ENOTSUP':
      return [500, `cannot access '${path}': ${code}`];
    default:
      console.error(error);
      return [500, `cannot access '${path}'`];
  }
}

/** These routes have statuses of their own: only a wrong user is told apart. */
const statusOf = ({ code }: ConnectError): number =>
  code === 'unauthenticated' || code === 'not_found' ? connectStatus[code] : 400;

const pathWords: Record<string, string> = {
  ENOENT: 'does not exist',
  EISDIR: 'is a directory',
  ENOTDIR: 'leads through something that is not a directory',
  ENAMETOOLONG: 'has a name that is too long',
  ELOOP: 'leads through a loop of links',
};

export async function downloadFile(
  caller: Caller,
  query: URLSearchParams,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  let path = query.get('path') ?? '';
  try {
    path = guestPath(caller, path);
    const facts = await stat(path);
    if (facts.isDirectory()) return sendFileError(response, 400, `path '${path}' is a directory`);
    // Opening a pipe would wait for its writer.
    if (!facts.isFile()) return sendFileError(response, 400, `path '${path}' is not a regular file`);
    const file = await open(path);
    try {
      // Of what was opened: another file may have the name by now.
      await sendFile(file, await file.stat(), path, request, response);
    } finally {
      await file.close();
    }
  } catch (error) {
    if (response.headersSent) response.destroy();
    else sendFileError(response, ...fileFailure(error, path));
  }
}

async function sendFile(
  file: FileHandle,
  facts: Stats,
  path: string,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const coding = codingFor(request.headers['accept-encoding']);
  if (coding === undefined)
    return sendFileError(response, 406, 'no acceptable encoding found, supported: [identity, gzip]');
  response.setHeader('content-type', 'application/octet-stream');
  response.setHeader('content-disposition', `inline; filename*=UTF-8''${encodeURIComponent(basename(path))}`);
  response.setHeader('vary', 'accept-encoding');
  // Files of /proc say they are empty and are not: only reading tells.
  if (facts.size === 0) return await sendUnsized(file, response);
  const tag = entityTag(facts, coding);
  const validators = { 'last-modified': facts.mtime.toUTCString(), etag: tag };
  const status = preconditionStatus(request, tag, facts.mtimeMs);
  if (status === 304) return void response.writeHead(304, validators).end();
  if (status === 412) return sendFileError(response, 412, 'the file is not what the condition names');
  if (coding === 'gzip' && request.headers.range === undefined)
    return await sendGzip(file, validators, response);
  await sendRange(file, facts.size, rangeFor(request, tag, facts), validators, response);
}

/** Sent with the headers, so that these can still say what the file is by then. */
const headBytes = 64 * 1024;

async function sendRange(
  file: FileHandle,
  sizeBytes: number,
  range: ReturnType<typeof rangeFor>,
  validators: Record<string, string>,
  response: ServerResponse,
): Promise<void> {
  if (range === 'unsatisfiable') {
    response.setHeader('content-range', `bytes */${sizeBytes}`);
    return sendFileError(response, 416, 'the range is outside the file');
  }
  const [first, last] = range ?? [0, sizeBytes - 1];
  const wantedBytes = last - first + 1;
  const head = await readHead(file, first, Math.min(headBytes, wantedBytes));
  // Somebody writes it anew: it is sent as it is now, which has no length yet.
  if (head === undefined) return await sendUnsized(file, response);
  response.writeHead(range === undefined ? 200 : 206, {
    ...validators,
    'accept-ranges': 'bytes',
    'content-length': wantedBytes,
    ...(range === undefined ? {} : { 'content-range': `bytes ${first}-${last}/${sizeBytes}` }),
  });
  if (head.length === wantedBytes) return void response.end(head);
  response.write(head);
  const rest = readFrom(file, first + head.length, last);
  // A file that shrank meanwhile must not end as if it were whole.
  rest.once('end', () => head.length + rest.bytesRead < wantedBytes && response.destroy());
  await pipeline(rest, response);
}

/** @returns undefined when the file ends before. */
async function readHead(file: FileHandle, start: number, sizeBytes: number): Promise<Buffer | undefined> {
  const head = Buffer.allocUnsafe(sizeBytes);
  for (let at = 0; at < sizeBytes; ) {
    const { bytesRead } = await file.read(head, at, sizeBytes - at, start + at);
    if (bytesRead === 0) return undefined;
    at += bytesRead;
  }
  return head;
}

const readFrom = (file: FileHandle, start: number, end?: number): ReadStream =>
  createReadStream('', { fd: file, start, end, autoClose: false });

async function sendUnsized(file: FileHandle, response: ServerResponse): Promise<void> {
  const head = await file.read({ buffer: Buffer.alloc(1), position: 0 });
  if (head.bytesRead === 0) return void response.writeHead(200, { 'content-length': 0 }).end();
  await pipeline(readFrom(file, 0), response);
}

async function sendGzip(
  file: FileHandle,
  validators: Record<string, string>,
  response: ServerResponse,
): Promise<void> {
  const { createGzip } = await import('node:zlib');
  response.writeHead(200, { ...validators, 'content-encoding': 'gzip' });
  await pipeline(readFrom(file, 0), createGzip({ level: 1 }), response);
}
