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
  #held: Buffer = Buffer.alloc(0);

  constructor(maxFrameBytes: number) {
    this.#maxFrameBytes = maxFrameBytes;
  }

  /** @throws ConnectError `resource_exhausted` for a frame over the limit, `unimplemented` for a compressed one, `invalid_argument` for bad JSON. */
  push(chunk: Buffer): Frame[] {
    this.#held = this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]);
    const frames: Frame[] = [];
    while (this.#held.length >= headerBytes) {
      const flag = this.#held.readUInt8(0);
      const endsAt = headerBytes + this.#held.readUInt32BE(1);
      if ((flag & compressedFlag) !== 0) throw new ConnectError('unimplemented', 'compressed frames');
      if (endsAt > this.#maxFrameBytes)
        throw new ConnectError('resource_exhausted', `a frame may have ${this.#maxFrameBytes} bytes`);
      if (this.#held.length < endsAt) break;
      frames.push({ flag, message: parseJson(this.#held.subarray(headerBytes, endsAt)) });
      this.#held = this.#held.subarray(endsAt);
    }
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
