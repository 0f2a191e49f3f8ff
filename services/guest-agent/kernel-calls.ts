// Owns the kernel calls of the after-restore step and of the seal before it, calls to the host by vsock, pipes that a child may open by name, and pseudo-terminals.
// Invariant: a call that fails throws with its name and the system's error code.
import { closeSync, constants, fchownSync, openSync, writeFileSync } from 'node:fs';
import { getSystemErrorName } from 'node:util';
import { foreign, lastErrno } from './native-library.ts';

const rndAddEntropy = 0x40085203;
const rndReseedCrng = 0x5207;
const clockRealtime = 0;
export const closeOnExec = 0o2000000;
const setTerminalLock = 0x40045431;
const getTerminalPeer = 0x5441;
const setWindowSize = 0x5414;

/** @returns `result` unless it is negative. @throws Error with the `code` that Node's own calls have. */
export function checked(call: string, result: number): number {
  if (result >= 0) return result;
  const code = getSystemErrorName(-lastErrno());
  throw Object.assign(new Error(`${call}: ${code}`), { code });
}

function ioctl(call: string, fd: number, request: number, argument: Buffer | number | null): number {
  return checked(call, foreign('ioctl', 'int', ['int', 'unsigned long', 'void *'])(fd, request, argument));
}

/** Credits `seed` to the kernel's pool, then makes its generator draw a new key: without the second step nothing changes. */
export function reseedKernel(seed: Buffer): void {
  const request = Buffer.alloc(8 + seed.length);
  request.writeInt32LE(seed.length * 8, 0);
  request.writeInt32LE(seed.length, 4);
  seed.copy(request, 8);
  const device = openSync('/dev/urandom', 'r+');
  try {
    ioctl('RNDADDENTROPY', device, rndAddEntropy, request);
    ioctl('RNDRESEEDCRNG', device, rndReseedCrng, null);
  } finally {
    closeSync(device);
    request.fill(0);
  }
}

export function setWallClock(wallClockMs: number): void {
  const seconds = Math.floor(wallClockMs / 1000);
  const time = new BigInt64Array([BigInt(seconds), BigInt(Math.round((wallClockMs - seconds * 1000) * 1e6))]);
  checked('clock_settime', foreign('clock_settime', 'int', ['int', 'void *'])(clockRealtime, time));
}

export function setHostname(name: string): void {
  const bytes = Buffer.from(name);
  checked('sethostname', foreign('sethostname', 'int', ['void *', 'size_t'])(bytes, bytes.length));
}

/** Written first: only clean pages can be forgotten. What a program has mapped stays. */
export function dropCaches(): void {
  foreign('sync', 'void', [])();
  writeFileSync('/proc/sys/vm/drop_caches', '3');
}

export interface Pipe {
  readFd: number;
  writeFd: number;
}

/** A real pipe: Node gives its children sockets, which programs cannot open as /dev/stdout. */
export function makePipe(): Pipe {
  const fds = new Int32Array(2);
  checked('pipe2', foreign('pipe2', 'int', ['void *', 'int'])(fds, closeOnExec));
  return { readFd: fds[0]!, writeFd: fds[1]! };
}

export interface TerminalSize {
  cols: number;
  rows: number;
}

export interface TerminalPair {
  /** The side where what is typed is written and what is shown is read. */
  hostFd: number;
  /** The side that is a program's terminal. */
  programFd: number;
}

/** @param owner who may open the terminal by its name beside root. */
export function openTerminal(size: TerminalSize, owner?: { uid: number; gid: number }): TerminalPair {
  const hostFd = openSync('/dev/ptmx', constants.O_RDWR | constants.O_NOCTTY);
  try {
    ioctl('TIOCSPTLCK', hostFd, setTerminalLock, Buffer.alloc(4));
    setTerminalSize(hostFd, size);
    const flags = constants.O_RDWR | constants.O_NOCTTY | closeOnExec;
    const programFd = ioctl('TIOCGPTPEER', hostFd, getTerminalPeer, flags);
    if (owner !== undefined) fchownSync(programFd, owner.uid, owner.gid);
    return { hostFd, programFd };
  } catch (error) {
    closeSync(hostFd);
    throw error;
  }
}

export function setTerminalSize(fd: number, { cols, rows }: TerminalSize): void {
  // struct winsize: rows, columns, and two sizes in pixels that nobody uses.
  const size = Buffer.alloc(8);
  size.writeUInt16LE(rows, 0);
  size.writeUInt16LE(cols, 2);
  ioctl('TIOCSWINSZ', fd, setWindowSize, size);
}

const addressFamilyVsock = 40;
const streamSocket = 1;
const hostCid = 2;

/** @returns the descriptor of a stream connection to `port` of the host. */
export async function connectVsock(port: number): Promise<number> {
  const fd = foreign('socket', 'int', ['int', 'int', 'int'])(
    addressFamilyVsock,
    streamSocket | closeOnExec,
    0,
  ) as number;
  if (fd < 0) throw new Error(`socket(AF_VSOCK) failed with errno ${lastErrno()}`);
  // struct sockaddr_vm: family, reserved, port, cid, flags and zeros.
  const address = Buffer.alloc(16);
  address.writeUInt16LE(addressFamilyVsock, 0);
  address.writeUInt32LE(port, 4);
  address.writeUInt32LE(hostCid, 8);
  const connect = foreign('connect', 'int', ['int', 'void *', 'uint32_t']);
  // In a thread of its own: the call waits for the host.
  const result = await new Promise<number>((resolve, reject) =>
    connect.async(fd, address, address.length, (error: Error | null, value: number) =>
      error ? reject(error) : resolve(value),
    ),
  );
  if (result === 0) return fd;
  closeSync(fd);
  throw new Error(`connect to the host's vsock port ${port} failed`);
}
