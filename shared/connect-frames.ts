// Owns the Connect protocol's words in its JSON form: error codes with their HTTP status, and stream envelopes.
// Refuses to own messages (each service types its own) and sockets.
// Invariant: a decoder never holds more than one frame of at most its limit.

/** Connect error codes that Thaw uses, with the HTTP status of a unary answer. */
export const connectStatus = {
  canceled: 499,
  invalid_argument: 400,
  deadline_exceeded: 504,
  not_found: 404,
  already_exists: 409,
  permission_denied: 403,
  resource_exhausted: 429,
  failed_precondition: 400,
  unimplemented: 501,
  internal: 500,
  unavailable: 503,
  unauthenticated: 401,
} as const;

export type ConnectCode = keyof typeof connectStatus;

export class ConnectError extends Error {
  readonly code: ConnectCode;

  constructor(code: ConnectCode, message: string) {
    super(message);
    this.name = 'ConnectError';
    this.code = code;
  }
}

/** Flag of the last frame of a stream; its JSON is `{}` or `{"error":{code,message}}`. */
export const endFlag = 0x02;
const compressedFlag = 0x01;
const headerBytes = 5;

/** One envelope: flag byte, big-endian length, JSON. */
export function encodeFrame(message: unknown, flag = 0): Buffer {
  const text = JSON.stringify(message);
  const sizeBytes = Buffer.byteLength(text);
  const frame = Buffer.allocUnsafe(headerBytes + sizeBytes);
  frame.writeUInt8(flag, 0);
  frame.writeUInt32BE(sizeBytes, 1);
  frame.write(text, headerBytes);
  return frame;
}

export interface Frame {
  flag: number;
  message: unknown;
}

/** Cuts a byte stream into frames. */
export class FrameDecoder {
  readonly #maxFrameBytes: number;
  #held: Buffer[] = [];
  #heldBytes = 0;
  /** Below this many bytes there is nothing to decode: chunks are only collected. */
  #neededBytes = headerBytes;

  constructor(maxFrameBytes: number) {
    this.#maxFrameBytes = maxFrameBytes;
  }

  /** Bytes of a frame whose rest has not come: not 0 at the end of a stream means that it was cut off. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** @throws ConnectError `resource_exhausted` for a frame over the limit, `unimplemented` for a compressed one, `invalid_argument` for bad JSON. */
  push(chunk: Buffer): Frame[] {
    this.#held.push(chunk);
    this.#heldBytes += chunk.length;
    if (this.#heldBytes < this.#neededBytes) return [];
    let rest = this.#held.length === 1 ? chunk : Buffer.concat(this.#held);
    const frames: Frame[] = [];
    this.#neededBytes = headerBytes;
    while (rest.length >= headerBytes) {
      const flag = rest.readUInt8(0);
      const endsAt = headerBytes + rest.readUInt32BE(1);
      if ((flag & compressedFlag) !== 0) throw new ConnectError('unimplemented', 'compressed frames');
      if (endsAt > this.#maxFrameBytes)
        throw new ConnectError('resource_exhausted', `a frame may have ${this.#maxFrameBytes} bytes`);
      if (rest.length < endsAt) {
        this.#neededBytes = endsAt;
        break;
      }
      frames.push({ flag, message: parseJson(rest.subarray(headerBytes, endsAt)) });
      rest = rest.subarray(endsAt);
    }
    this.#held = rest.length === 0 ? [] : [rest];
    this.#heldBytes = rest.length;
    return frames;
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    throw new ConnectError('invalid_argument', 'the message is not valid JSON');
  }
}
