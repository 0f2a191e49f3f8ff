// Owns the FUSE wire format that pagefs speaks: requests of the kernel out of a buffer, replies and notices into one.
// Refuses to own what an operation means. Facts: Linux, include/uapi/linux/fuse.h; little-endian hosts only.
// Invariant: a request is copied out of its buffer before the buffer is read into again.
import { ThawError } from '../../shared/errors.ts';

/** The oldest minor version whose structures are those below (`max_pages` came with 28, the last one we need). */
const protocol = { major: 7, minor: 31 } as const;

const opcodes = {
  lookup: 1,
  forget: 2,
  getattr: 3,
  setattr: 4,
  open: 14,
  read: 15,
  write: 16,
  statfs: 17,
  release: 18,
  opendir: 27,
  readdir: 28,
  releasedir: 29,
  init: 26,
  interrupt: 36,
  destroy: 38,
  batchForget: 42,
} as const;

const initFlags = { asyncRead: 1 << 0, parallelDirops: 1 << 18, abortError: 1 << 21, maxPages: 1 << 22 };
const notifyCodes = { invalidateEntry: 3, store: 4 } as const;
/** OPEN: pages that the kernel holds stay valid when the file is opened again. */
const keepCache = 1 << 1;

const inHeaderBytes = 40;
const outHeaderBytes = 16;
const attrBytes = 88;
/** At least FUSE_MIN_READ_BUFFER, and a header with the largest WRITE that the kernel may send after our INIT reply. */
export const requestBufferBytes = 64 * 1024;
const maxWriteBytes = 4096;

export const rootNodeId = 1;
export const errno = {
  ENOENT: 2,
  EIO: 5,
  EAGAIN: 11,
  ENOTDIR: 20,
  EISDIR: 21,
  EROFS: 30,
  ENOSYS: 38,
} as const;
export type Errno = keyof typeof errno;

interface RequestHeader {
  /** Names the request in its reply. */
  unique: number;
  nodeId: number;
  /** The thread that asked, 0 for the kernel itself. */
  pid: number;
}

export type FuseRequest = RequestHeader &
  (
    | { op: 'init'; major: number; minor: number; maxReadaheadBytes: number; flags: number }
    | { op: 'lookup'; name: string }
    | { op: 'forget'; forgotten: { nodeId: number; lookups: number }[] }
    | { op: 'read' | 'readdir'; offsetBytes: number; sizeBytes: number }
    | { op: 'write'; offsetBytes: number; sizeBytes: number }
    | { op: 'getattr' | 'setattr' | 'open' | 'release' | 'statfs' }
    | { op: 'opendir' | 'releasedir' | 'interrupt' | 'destroy' }
    | { op: 'other'; opcode: number }
  );

/** Bytes past 2^53 exist in no file of ours and no counter of the kernel's. */
function u64(buffer: Buffer, at: number): number {
  const value = buffer.readUInt32LE(at + 4) * 0x1_0000_0000 + buffer.readUInt32LE(at);
  if (!Number.isSafeInteger(value)) throw new ThawError('internal', `FUSE: ${value} is out of range`);
  return value;
}

function putU64(buffer: Buffer, value: number, at: number): void {
  buffer.writeUInt32LE(value % 0x1_0000_0000, at);
  buffer.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}

/** @param length what read(2) returned: the kernel gives exactly one request a call. @throws ThawError `internal`. */
export function decodeRequest(buffer: Buffer, length: number): FuseRequest {
  if (length < inHeaderBytes || buffer.readUInt32LE(0) !== length)
    throw new ThawError('internal', `FUSE: a request of ${length} bytes does not fit its header`);
  const opcode = buffer.readUInt32LE(4);
  const header = { unique: u64(buffer, 8), nodeId: u64(buffer, 16), pid: buffer.readUInt32LE(32) };
  return { ...header, ...decodeBody(opcode, header.nodeId, buffer.subarray(inHeaderBytes, length)) };
}

type RequestBody = FuseRequest extends infer R
  ? R extends unknown
    ? Omit<R, keyof RequestHeader>
    : never
  : never;

function decodeBody(opcode: number, nodeId: number, body: Buffer): RequestBody {
  switch (opcode) {
    case opcodes.read:
      return { op: 'read', offsetBytes: u64(body, 8), sizeBytes: body.readUInt32LE(16) };
    case opcodes.readdir:
      return { op: 'readdir', offsetBytes: u64(body, 8), sizeBytes: body.readUInt32LE(16) };
    case opcodes.write:
      return { op: 'write', offsetBytes: u64(body, 8), sizeBytes: body.readUInt32LE(16) };
    case opcodes.lookup:
      return { op: 'lookup', name: body.toString('utf8', 0, body.indexOf(0)) };
    case opcodes.forget:
      return { op: 'forget', forgotten: [{ nodeId, lookups: u64(body, 0) }] };
    case opcodes.batchForget:
      return { op: 'forget', forgotten: decodeForgets(body) };
    case opcodes.init:
      return {
        op: 'init',
        major: body.readUInt32LE(0),
        minor: body.readUInt32LE(4),
        maxReadaheadBytes: body.readUInt32LE(8),
        flags: body.readUInt32LE(12),
      };
    default:
      return { ...(plainOps.get(opcode) ?? { op: 'other', opcode }) };
  }
}

/** Operations whose arguments we do not need. */
const plainOps = new Map<number, RequestBody>(
  (
    [
      'getattr',
      'setattr',
      'open',
      'release',
      'statfs',
      'opendir',
      'releasedir',
      'interrupt',
      'destroy',
    ] as const
  ).map((op) => [opcodes[op], { op }]),
);

function decodeForgets(body: Buffer): { nodeId: number; lookups: number }[] {
  return Array.from({ length: body.readUInt32LE(0) }, (_, index) => ({
    nodeId: u64(body, 8 + index * 16),
    lookups: u64(body, 16 + index * 16),
  }));
}

function outHeader(unique: number, error: number, bodyBytes: number): Buffer {
  const header = Buffer.allocUnsafe(outHeaderBytes);
  header.writeUInt32LE(outHeaderBytes + bodyBytes, 0);
  header.writeInt32LE(error, 4);
  putU64(header, unique, 8);
  return header;
}

/** A whole reply, as the pieces of one vectored write. */
export function encodeReply(unique: number, body: readonly Buffer[] = []): Buffer[] {
  return [
    outHeader(
      unique,
      0,
      body.reduce((sum, piece) => sum + piece.length, 0),
    ),
    ...body,
  ];
}

export const encodeError = (unique: number, error: Errno): Buffer[] => [outHeader(unique, -errno[error], 0)];

export interface InitLimits {
  /** How far the kernel reads ahead, and around a fault; at most what it offers. */
  maxReadaheadBytes: number;
  /** The largest READ. */
  maxReadBytes: number;
  /** Read-ahead requests that the kernel keeps in flight. */
  maxBackground: number;
}

const pageBytes = 4096;

/** @returns undefined when the kernel speaks another major version or one older than ours. */
export function initReply(
  offer: { major: number; minor: number; maxReadaheadBytes: number; flags: number },
  limits: InitLimits,
): Buffer | undefined {
  if (offer.major !== protocol.major || offer.minor < protocol.minor) return undefined;
  const wanted = initFlags.asyncRead | initFlags.parallelDirops | initFlags.abortError | initFlags.maxPages;
  const body = Buffer.alloc(64);
  body.writeUInt32LE(protocol.major, 0);
  body.writeUInt32LE(protocol.minor, 4);
  body.writeUInt32LE(Math.min(offer.maxReadaheadBytes, limits.maxReadaheadBytes), 8);
  body.writeUInt32LE((offer.flags & wanted) >>> 0, 12);
  body.writeUInt16LE(limits.maxBackground, 16);
  body.writeUInt16LE(Math.ceil((limits.maxBackground * 3) / 4), 18);
  body.writeUInt32LE(maxWriteBytes, 20);
  body.writeUInt32LE(1, 24);
  body.writeUInt16LE(Math.ceil(limits.maxReadBytes / pageBytes), 28);
  return body;
}

export interface Attributes {
  nodeId: number;
  sizeBytes: number;
  /** File type and permission bits. */
  mode: number;
  links: number;
  uid: number;
  gid: number;
}

/** Names and attributes never change while they exist: the kernel may keep them. */
const validSeconds = 24 * 60 * 60;

function putAttributes(
  buffer: Buffer,
  { nodeId, sizeBytes, mode, links, uid, gid }: Attributes,
  at: number,
): void {
  putU64(buffer, nodeId, at);
  putU64(buffer, sizeBytes, at + 8);
  putU64(buffer, Math.ceil(sizeBytes / 512), at + 16);
  for (const [index, value] of [mode, links, uid, gid, 0, pageBytes].entries())
    buffer.writeUInt32LE(value, at + 60 + index * 4);
}

export function attributesReply(attributes: Attributes): Buffer {
  const body = Buffer.alloc(16 + attrBytes);
  putU64(body, validSeconds, 0);
  putAttributes(body, attributes, 16);
  return body;
}

export function entryReply(attributes: Attributes): Buffer {
  const body = Buffer.alloc(40 + attrBytes);
  putU64(body, attributes.nodeId, 0);
  putU64(body, validSeconds, 16);
  putU64(body, validSeconds, 24);
  putAttributes(body, attributes, 40);
  return body;
}

/** No file handle: the node id says all, also after a restart of whoever opened. */
export function openReply(): Buffer {
  const body = Buffer.alloc(16);
  body.writeUInt32LE(keepCache, 8);
  return body;
}

export function statfsReply(): Buffer {
  const body = Buffer.alloc(80);
  body.writeUInt32LE(pageBytes, 40);
  body.writeUInt32LE(255, 44);
  body.writeUInt32LE(pageBytes, 48);
  return body;
}

export interface DirectoryEntry {
  nodeId: number;
  name: string;
  type: 'directory' | 'file';
}

/** As many entries from the `offset`-th on as fit; empty at the end. */
export function directoryReply(
  entries: readonly DirectoryEntry[],
  offset: number,
  sizeBytes: number,
): Buffer {
  const records: Buffer[] = [];
  let roomBytes = sizeBytes;
  for (let index = offset; index < entries.length; index++) {
    const record = directoryRecord(entries[index]!, index + 1);
    roomBytes -= record.length;
    if (roomBytes < 0) break;
    records.push(record);
  }
  return Buffer.concat(records);
}

function directoryRecord({ nodeId, name, type }: DirectoryEntry, nextOffset: number): Buffer {
  const nameBytes = Buffer.from(name);
  const record = Buffer.alloc(Math.ceil((24 + nameBytes.length) / 8) * 8);
  putU64(record, nodeId, 0);
  putU64(record, nextOffset, 8);
  record.writeUInt32LE(nameBytes.length, 16);
  // DT_DIR, DT_REG
  record.writeUInt32LE(type === 'directory' ? 4 : 8, 20);
  nameBytes.copy(record, 24);
  return record;
}

/** Puts bytes into the kernel's page cache unasked. Whole pages, except at the end of the file. */
export function encodeStore(nodeId: number, offsetBytes: number, data: readonly Buffer[]): Buffer[] {
  const sizeBytes = data.reduce((sum, piece) => sum + piece.length, 0);
  const body = Buffer.alloc(24);
  putU64(body, nodeId, 0);
  putU64(body, offsetBytes, 8);
  body.writeUInt32LE(sizeBytes, 16);
  // A notice is a reply to no request whose error field holds its code.
  return [outHeader(0, notifyCodes.store, body.length + sizeBytes), body, ...data];
}

/** Makes the kernel forget a name. */
export function encodeInvalidateEntry(parentNodeId: number, name: string): Buffer[] {
  const nameBytes = Buffer.from(`${name}\0`);
  const body = Buffer.alloc(16);
  putU64(body, parentNodeId, 0);
  body.writeUInt32LE(nameBytes.length - 1, 8);
  return [outHeader(0, notifyCodes.invalidateEntry, body.length + nameBytes.length), body, nameBytes];
}
