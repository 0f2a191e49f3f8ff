// Owns the envelopes of a Connect stream in its JSON form: flag byte, big-endian length, JSON.
// Refuses to own sockets and messages. Invariant: a frame above the limit is refused before its bytes are held.
import { ThawError } from './errors.ts';

const headerBytes = 5;
const endFlag = 0x02;
/** Output comes in chunks far below this. */
const maxFrameBytes = 16 * 1024 * 1024;

export interface Frame {
  /** The last one of the stream: `{}` or `{ error }`. */
  isEnd: boolean;
  message: Record<string, unknown>;
}

export function encodeFrame(message: unknown): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(JSON.stringify(message));
  const frame = new Uint8Array(headerBytes + json.length);
  new DataView(frame.buffer).setUint32(1, json.length);
  frame.set(json, headerBytes);
  return frame;
}

/** Cuts bytes into frames as they arrive. */
export class FrameDecoder {
  #held: Uint8Array = new Uint8Array(0);

  /** @throws ThawError `internal` when the bytes are no such stream. */
  push(chunk: Uint8Array): Frame[] {
    this.#held = this.#held.length === 0 ? chunk : concat(this.#held, chunk);
    const frames: Frame[] = [];
    while (this.#held.length >= headerBytes) {
      const view = new DataView(this.#held.buffer, this.#held.byteOffset);
      const endsAt = headerBytes + view.getUint32(1);
      if (endsAt > maxFrameBytes) throw malformed(`a frame of ${endsAt} bytes`);
      if (this.#held.length < endsAt) break;
      const isEnd = (view.getUint8(0) & endFlag) !== 0;
      frames.push({ isEnd, message: parse(this.#held.subarray(headerBytes, endsAt)) });
      this.#held = this.#held.subarray(endsAt);
    }
    return frames;
  }
}

function concat(one: Uint8Array, other: Uint8Array): Uint8Array {
  const both = new Uint8Array(one.length + other.length);
  both.set(one);
  both.set(other, one.length);
  return both;
}

function parse(bytes: Uint8Array): Record<string, unknown> {
  try {
    return JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
  } catch {
    throw malformed('a frame that is not JSON');
  }
}

const malformed = (what: string) => new ThawError(`the stream holds ${what}`, { code: 'internal' });
