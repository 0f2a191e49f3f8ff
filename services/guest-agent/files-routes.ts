// Owns GET /files: a file's bytes with ranges and, when it is the one coding asked for, gzip.
// Refuses to own uploads (files-upload.ts) and who may read (http-server.ts).
// Invariant: never more of a file in memory than one chunk; errors are `{code,message}` with the status as code.
import { createReadStream, type Stats } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { basename } from 'node:path';
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { ConnectError } from '../../shared/connect-frames.ts';
import type { Caller } from './caller.ts';
import { guestPath } from './caller.ts';
import { sendJson } from './connect-json.ts';

export function sendFileError(response: ServerResponse, status: number, message: string): void {
  sendJson(response, status, { code: status, message });
}

/** @returns the HTTP status and words for a failure while a file was read or written. */
export function fileFailure(error: unknown, path: string): [status: number, message: string] {
  if (error instanceof ConnectError) return [error.code === 'unauthenticated' ? 401 : 400, error.message];
  const { code } = error as NodeJS.ErrnoException;
  if (code?.startsWith('Z_')) return [400, 'the body is not valid gzip'];
  switch (code) {
    case 'ECONNRESET':
    case 'ERR_STREAM_PREMATURE_CLOSE':
      return [400, 'the body ended early'];
    case 'ENOENT':
      return [404, `path '${path}' does not exist`];
    case 'EISDIR':
      return [400, `path '${path}' is a directory`];
    case 'ENOTDIR':
      return [400, `a part of path '${path}' is not a directory`];
    case 'ENOSPC':
    case 'EDQUOT':
      return [507, 'not enough disk space available'];
    default:
      console.error(error);
      return [500, `cannot access '${path}'`];
  }
}

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
      await sendFile(file, facts, path, request, response);
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
  response.setHeader('content-type', 'application/octet-stream');
  response.setHeader('content-disposition', `inline; filename*=UTF-8''${encodeURIComponent(basename(path))}`);
  response.setHeader('last-modified', facts.mtime.toUTCString());
  response.setHeader('vary', 'accept-encoding');
  // Files of /proc say they are empty and are not: only reading tells.
  if (facts.size === 0) return await sendUnsized(file, response);
  if (request.headers.range === undefined && wantsGzip(request)) return await sendGzip(file, response);
  response.setHeader('accept-ranges', 'bytes');
  const range = parseRange(request.headers.range, facts.size);
  if (range === 'unsatisfiable') {
    response.setHeader('content-range', `bytes */${facts.size}`);
    return sendFileError(response, 416, 'the range is outside the file');
  }
  const [first, last] = range ?? [0, facts.size - 1];
  if (range !== undefined) response.setHeader('content-range', `bytes ${first}-${last}/${facts.size}`);
  response.setHeader('content-length', last - first + 1);
  response.statusCode = range === undefined ? 200 : 206;
  await pipeline(readFrom(file, first, last), response);
}

const readFrom = (file: FileHandle, start: number, end?: number): Readable =>
  createReadStream('', { fd: file, start, end, autoClose: false });

async function sendUnsized(file: FileHandle, response: ServerResponse): Promise<void> {
  const head = await file.read({ buffer: Buffer.alloc(1), position: 0 });
  if (head.bytesRead === 0) response.setHeader('content-length', 0);
  await pipeline(readFrom(file, 0), response);
}

async function sendGzip(file: FileHandle, response: ServerResponse): Promise<void> {
  const { createGzip } = await import('node:zlib');
  response.setHeader('content-encoding', 'gzip');
  await pipeline(readFrom(file, 0), createGzip({ level: 1 }), response);
}

/**
 * Every `fetch` offers "gzip, deflate, br" for anything, and compressing costs a small guest more than the bytes:
 * a client that means it asks for gzip alone.
 */
export function wantsGzip(request: IncomingMessage): boolean {
  return request.headers['accept-encoding']?.trim().toLowerCase() === 'gzip';
}

/** One range as first and last byte; undefined for none, for several and for what is malformed: then all is sent. */
export function parseRange(
  header: string | undefined,
  sizeBytes: number,
): [number, number] | 'unsatisfiable' | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '');
  if (match === null || (match[1] === '' && match[2] === '')) return undefined;
  const last = sizeBytes - 1;
  if (match[1] === '') {
    const suffix = Number(match[2]);
    return suffix === 0 ? 'unsatisfiable' : [Math.max(0, sizeBytes - suffix), last];
  }
  const first = Number(match[1]);
  const end = match[2] === '' ? last : Math.min(Number(match[2]), last);
  if (match[2] !== '' && Number(match[2]) < first) return undefined;
  return first > last ? 'unsatisfiable' : [first, end];
}
