// Tests which connections of the kernel's list are ended, on messages as the kernel writes them. Ending needs a VM.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Connection, parseConnections, reachesOut } from './inherited-connections.ts';

const done = 3;
const error = 2;
const answer = 20;

function message(type: number, body: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.writeUInt32LE(16 + body.length, 0);
  header.writeUInt16LE(type, 4);
  return Buffer.concat([header, body]);
}

function connection(family: number, source: number[], destination: number[]): Buffer {
  const body = Buffer.alloc(72);
  body[0] = family;
  body.writeUInt16BE(49983, 4);
  Buffer.from(source).copy(body, 8);
  Buffer.from(destination).copy(body, 24);
  return message(answer, body);
}

const guest = [10, 0, 2, 15];
const mapped = (address: number[]) => [...Array(10).fill(0), 0xff, 0xff, ...address];
const loopback6 = [...Array(15).fill(0), 1];

describe('inherited connections', () => {
  it('are those with an end outside of the guest', () => {
    const found: Connection[] = [];
    const received = [
      connection(2, guest, [10, 0, 2, 2]),
      connection(2, [127, 0, 0, 1], [127, 0, 0, 1]),
      connection(2, guest, guest),
      connection(10, mapped(guest), mapped([93, 184, 215, 14])),
      connection(10, loopback6, loopback6),
      connection(10, mapped([127, 0, 0, 1]), mapped([127, 0, 0, 1])),
    ];
    assert.equal(parseConnections(Buffer.concat(received), found), false);
    assert.deepEqual(found.map(reachesOut), [true, false, false, true, false, false]);
    assert.equal(found[0]!.id.readUInt16BE(0), 49983);
  });

  it('are complete at the end mark, also one in the middle of a read', () => {
    const found: Connection[] = [];
    const received = [connection(2, guest, [10, 0, 2, 2]), message(done, Buffer.alloc(4))];
    assert.equal(parseConnections(Buffer.concat(received), found), true);
    assert.equal(found.length, 1);
  });

  it('cannot be told by a kernel without the module: an error, never an empty list', () => {
    const failure = Buffer.alloc(20);
    failure.writeInt32LE(-2, 0);
    assert.throws(() => parseConnections(message(error, failure), []), /errno 2/);
  });
});
