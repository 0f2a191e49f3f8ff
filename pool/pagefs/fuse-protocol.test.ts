import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  attributesReply,
  decodeRequest,
  directoryReply,
  encodeError,
  encodeInvalidateEntry,
  encodeReply,
  encodeStore,
  entryReply,
  initReply,
  openReply,
} from './fuse-protocol.ts';

/** A request as the kernel lays it out: struct fuse_in_header, then the operation's own structure. */
function request(
  opcode: number,
  body: Buffer,
  header: { unique?: number; nodeId?: number; pid?: number } = {},
): Buffer {
  const bytes = Buffer.alloc(40 + body.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(opcode, 4);
  bytes.writeBigUInt64LE(BigInt(header.unique ?? 2), 8);
  bytes.writeBigUInt64LE(BigInt(header.nodeId ?? 1), 16);
  bytes.writeUInt32LE(header.pid ?? 0, 32);
  body.copy(bytes, 40);
  return bytes;
}

const decoded = (bytes: Buffer) => decodeRequest(bytes, bytes.length);
const words64 = (...values: number[]) => Buffer.from(BigUint64Array.from(values.map(BigInt)).buffer);

describe('FUSE requests', () => {
  it('reads READ: handle, offset beyond 4 GiB, size', () => {
    const body = Buffer.concat([words64(7, 5 * 2 ** 32 + 4096), Buffer.alloc(24)]);
    body.writeUInt32LE(131072, 16);
    assert.deepEqual(decoded(request(15, body, { unique: 2 ** 40 + 6, nodeId: 3, pid: 99 })), {
      op: 'read',
      unique: 2 ** 40 + 6,
      nodeId: 3,
      pid: 99,
      offsetBytes: 5 * 2 ** 32 + 4096,
      sizeBytes: 131072,
    });
  });

  it('reads the name of LOOKUP up to its NUL', () => {
    const found = decoded(request(1, Buffer.from('snap-1.memory\0rest')));
    assert.equal(found.op === 'lookup' && found.name, 'snap-1.memory');
  });

  it('reads FORGET and BATCH_FORGET alike', () => {
    const forget = decoded(request(2, words64(3), { nodeId: 8 }));
    assert.deepEqual(forget.op === 'forget' && forget.forgotten, [{ nodeId: 8, lookups: 3 }]);
    const batch = decoded(request(42, Buffer.concat([words64(2), words64(8, 3, 9, 1)])));
    assert.deepEqual(batch.op === 'forget' && batch.forgotten, [
      { nodeId: 8, lookups: 3 },
      { nodeId: 9, lookups: 1 },
    ]);
  });

  it('reads what the kernel offers in INIT', () => {
    const body = Buffer.alloc(64);
    for (const [index, value] of [7, 45, 131072, 0x73fffffb].entries()) body.writeUInt32LE(value, index * 4);
    assert.deepEqual(decoded(request(26, body)), {
      op: 'init',
      unique: 2,
      nodeId: 1,
      pid: 0,
      major: 7,
      minor: 45,
      maxReadaheadBytes: 131072,
      flags: 0x73fffffb,
    });
  });

  it('names operations whose arguments do not matter, and numbers those it does not know', () => {
    assert.equal(decoded(request(14, Buffer.alloc(8))).op, 'open');
    assert.equal(decoded(request(36, words64(1))).op, 'interrupt');
    const unknown = decoded(request(25, Buffer.alloc(24)));
    assert.deepEqual(unknown.op === 'other' && unknown.opcode, 25);
  });

  it('refuses a request that is shorter than its header says', () => {
    const bytes = request(15, Buffer.alloc(40));
    assert.throws(() => decodeRequest(bytes, bytes.length - 8), { code: 'internal' });
    assert.throws(() => decodeRequest(bytes, 12), { code: 'internal' });
  });
});

describe('FUSE replies', () => {
  const attributes = { nodeId: 5, sizeBytes: 6 * 2 ** 32, mode: 0o100600, links: 1, uid: 10, gid: 20 };

  it('counts header and body, and repeats the number of the request', () => {
    const [header, body] = encodeReply(2 ** 33 + 2, [Buffer.from('abc')]);
    assert.equal(header?.readUInt32LE(0), 19);
    assert.equal(header?.readInt32LE(4), 0);
    assert.equal(header?.readBigUInt64LE(8), BigInt(2 ** 33 + 2));
    assert.equal(body?.toString(), 'abc');
  });

  it('gives errors as negative numbers', () => {
    const [header] = encodeError(4, 'EROFS');
    assert.equal(header?.readUInt32LE(0), 16);
    assert.equal(header?.readInt32LE(4), -30);
  });

  it('puts attributes where struct fuse_entry_out and fuse_attr_out have them', () => {
    const entry = entryReply(attributes);
    assert.equal(entry.length, 128);
    assert.equal(entry.readBigUInt64LE(0), 5n);
    assert.equal(entry.readBigUInt64LE(40 + 8), BigInt(6 * 2 ** 32));
    assert.equal(entry.readUInt32LE(40 + 60), 0o100600);
    assert.equal(entry.readUInt32LE(40 + 68), 10);
    const attr = attributesReply(attributes);
    assert.equal(attr.length, 104);
    assert.equal(attr.readBigUInt64LE(16), 5n);
    assert.ok(attr.readBigUInt64LE(0) > 3600n, 'valid for long');
  });

  it('keeps the page cache on open', () => assert.equal(openReply().readUInt32LE(8) & 2, 2));

  it('accepts only flags that the kernel offered, and no more read-ahead than it offers', () => {
    const limits = { maxReadaheadBytes: 1 << 20, maxReadBytes: 1 << 20, maxBackground: 64 };
    const reply = initReply({ major: 7, minor: 45, maxReadaheadBytes: 131072, flags: 1 }, limits);
    assert.equal(reply?.length, 64);
    assert.equal(reply?.readUInt32LE(8), 131072);
    assert.equal(reply?.readUInt32LE(12), 1);
    assert.equal(reply?.readUInt16LE(28), 256);
    assert.equal(initReply({ major: 7, minor: 27, maxReadaheadBytes: 0, flags: 0 }, limits), undefined);
    assert.equal(initReply({ major: 8, minor: 45, maxReadaheadBytes: 0, flags: 0 }, limits), undefined);
  });

  it('lists a directory in pieces that fit', () => {
    const entries = ['.', '..', 'snap-1.memory'].map((name, index) => ({
      nodeId: index,
      name,
      type: 'file' as const,
    }));
    const first = directoryReply(entries, 0, 70);
    assert.equal(first.length, 64, 'two records of 32 bytes');
    assert.equal(first.readBigUInt64LE(8), 1n);
    const second = directoryReply(entries, 2, 70);
    assert.equal(second.toString('utf8', 24, 24 + second.readUInt32LE(16)), 'snap-1.memory');
    assert.equal(second.length % 8, 0);
    assert.equal(directoryReply(entries, 3, 70).length, 0);
  });

  it('makes notices: no request, the code in place of an error', () => {
    const store = Buffer.concat(encodeStore(9, 8192, [Buffer.alloc(4096, 1), Buffer.alloc(4096, 2)]));
    assert.equal(store.readUInt32LE(0), store.length);
    assert.equal(store.readInt32LE(4), 4);
    assert.equal(store.readBigUInt64LE(8), 0n);
    assert.deepEqual([store.readBigUInt64LE(16), store.readBigUInt64LE(24)], [9n, 8192n]);
    assert.equal(store.readUInt32LE(32), 8192);
    const invalidate = Buffer.concat(encodeInvalidateEntry(1, 'name'));
    assert.equal(invalidate.readUInt32LE(0), invalidate.length);
    assert.equal(invalidate.readInt32LE(4), 3);
    assert.equal(invalidate.readUInt32LE(24), 4, 'the NUL is not counted');
  });
});
