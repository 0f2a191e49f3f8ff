// Owns ending the TCP connections that a clone inherited: their other ends belong to the machine it was copied from, and
// who reads from one would wait for ever. Connections inside the guest go on: both of their ends were copied.
// Refuses to own the agent's own server (main.ts). Invariant: programs see ECONNABORTED, at once.
// Source: linux/inet_diag.h, linux/sock_diag.h (the kernel needs CONFIG_INET_DIAG_DESTROY and its tcp_diag module).
import { closeSync, readSync, writeSync } from 'node:fs';
import { foreign, lastErrno } from './native-library.ts';

const netlink = { family: 16, rawCloseOnExec: 3 | 0o2000000 | 0o4000, sockDiag: 4 };
const families = { inet: 2, inet6: 10 };
const protocolTcp = 6;
const messages = { error: 2, done: 3, byFamily: 20, destroy: 21 };
const flags = { request: 1, ack: 4, dump: 0x300 };
const headerBytes = 16;
const requestBytes = headerBytes + 56;
/** Ports, both addresses, interface and cookie: what names a socket, in requests and answers alike. */
const identity = { inRequest: headerBytes + 8, inAnswer: headerBytes + 4, sizeBytes: 48 };
const errnoGone = 2;
/** Every state with another end that may send: all but TIME_WAIT, CLOSE and LISTEN. */
const states = [1, 2, 3, 4, 5, 8, 9, 11].reduce((mask, state) => mask | (1 << state), 0);
const receiveBytes = 64 * 1024;
/** Not zeroed: each page that is written is one more that a clone does not share. */
const emptyAnswer = () => Buffer.allocUnsafeSlow(receiveBytes);

/** @returns how many were ended. @throws Error when the kernel cannot: the clone must not be used. */
export function endInheritedConnections(): number {
  const fd = foreign('socket', 'int', ['int', 'int', 'int'])(
    netlink.family,
    netlink.rawCloseOnExec,
    netlink.sockDiag,
  );
  if (fd < 0) throw new Error(`a netlink socket failed with errno ${lastErrno()}`);
  try {
    const inherited = [families.inet, families.inet6].flatMap((family) => connectionsOf(fd, family));
    for (const { family, id } of inherited) destroy(fd, family, id);
    return inherited.length;
  } finally {
    closeSync(fd);
  }
}

export interface Connection {
  family: number;
  /** As the kernel names it. */
  id: Buffer;
}

function connectionsOf(fd: number, family: number): Connection[] {
  writeSync(fd, requestOf(messages.byFamily, flags.request | flags.dump, family));
  const found: Connection[] = [];
  for (;;) {
    const received = emptyAnswer();
    const sizeBytes = readSync(fd, received);
    if (parseConnections(received.subarray(0, sizeBytes), found)) return found.filter(reachesOut);
  }
}

/** Adds what one read of the socket holds. @returns true when the kernel has told everything. */
export function parseConnections(received: Buffer, found: Connection[]): boolean {
  for (let at = 0; at + headerBytes <= received.length; ) {
    const sizeBytes = received.readUInt32LE(at);
    const type = received.readUInt16LE(at + 4);
    if (type === messages.done) return true;
    if (type === messages.error)
      throw new Error(`the kernel lists no connections: errno ${-received.readInt32LE(at + headerBytes)}`);
    const id = received.subarray(at + identity.inAnswer, at + identity.inAnswer + identity.sizeBytes);
    found.push({ family: received[at + headerBytes]!, id });
    at += Math.max(headerBytes, (sizeBytes + 3) & ~3);
  }
  return false;
}

/** The other end lies outside of this guest. */
export function reachesOut({ family, id }: Connection): boolean {
  const addressBytes = family === families.inet ? 4 : 16;
  const source = id.subarray(4, 4 + addressBytes);
  const destination = id.subarray(20, 20 + addressBytes);
  return !source.equals(destination) && !isLoopback(destination);
}

const mappedPrefix = Buffer.from([...Array(10).fill(0), 0xff, 0xff]);
const loopback6 = Buffer.from([...Array(15).fill(0), 1]);

function isLoopback(address: Buffer): boolean {
  if (address.length === 4) return address[0] === 127;
  return address.equals(loopback6) || (address.subarray(0, 12).equals(mappedPrefix) && address[12] === 127);
}

function destroy(fd: number, family: number, id: Buffer): void {
  const request = requestOf(messages.destroy, flags.request | flags.ack, family);
  id.copy(request, identity.inRequest);
  writeSync(fd, request);
  const reply = emptyAnswer();
  readSync(fd, reply);
  const errno = -reply.readInt32LE(headerBytes);
  if (errno !== 0 && errno !== errnoGone)
    throw new Error(`the kernel does not end a connection: errno ${errno}`);
}

function requestOf(type: number, requestFlags: number, family: number): Buffer {
  const request = Buffer.alloc(requestBytes);
  request.writeUInt32LE(requestBytes, 0);
  request.writeUInt16LE(type, 4);
  request.writeUInt16LE(requestFlags, 6);
  request[headerBytes] = family;
  request[headerBytes + 1] = protocolTcp;
  request.writeUInt32LE(states, headerBytes + 4);
  return request;
}
