// Owns the envelope of every signed object in the store: magic, version, length, HMAC-SHA-256 under the cluster key.
// Refuses to own what is inside. Invariant: `openSigned` returns the payload that was sealed under this very name and
// kind, or throws before anything looks at it; so objects that were edited, swapped or renamed are refused.
import { createHmac, hkdfSync, timingSafeEqual } from 'node:crypto';
import { ThawError } from '../../shared/errors.ts';
import { metrics } from '../../shared/metrics.ts';

export interface SignedKind {
  /** 8 ASCII characters. */
  magic: string;
  version: number;
  maxPayloadBytes: number;
}

const magicBytes = 8;
const versionOffset = 8;
const reservedOffset = 10;
const lengthOffset = 12;
const macOffset = 16;
const macBytes = 32;
export const headerBytes = macOffset + macBytes;
export const clusterKeyBytes = 32;

export class ClusterKey {
  readonly #secret: Buffer;
  readonly #derived = new Map<string, Buffer>();

  /** @throws ThawError `bad-config` unless it has 32 bytes. */
  constructor(secret: Buffer) {
    if (secret.length !== clusterKeyBytes)
      throw new ThawError('bad-config', `the cluster key has ${secret.length} bytes, not ${clusterKeyBytes}`);
    this.#secret = Buffer.from(secret);
  }

  /** A key for one kind of object alone: what one kind is signed with says nothing about another. */
  for(magic: string): Buffer {
    let key = this.#derived.get(magic);
    if (!key) {
      key = Buffer.from(hkdfSync('sha256', this.#secret, '', `thaw ${magic}`, clusterKeyBytes));
      this.#derived.set(magic, key);
    }
    return key;
  }
}

/** @param name the object's key in the store: a signature holds for that name only. */
export function sealSigned(kind: SignedKind, name: string, key: ClusterKey, payload: Uint8Array): Buffer {
  if (payload.length > kind.maxPayloadBytes)
    throw new ThawError('body-too-large', `${name} would have ${payload.length} bytes`);
  const object = Buffer.alloc(headerBytes + payload.length);
  object.write(kind.magic, 0, magicBytes, 'latin1');
  object.writeUInt16LE(kind.version, versionOffset);
  object.writeUInt32LE(payload.length, lengthOffset);
  object.set(payload, headerBytes);
  macOf(kind, name, key, object).copy(object, macOffset);
  return object;
}

/** @throws ThawError `snapshot-damaged`. */
export function openSigned(kind: SignedKind, name: string, key: ClusterKey, object: Buffer): Buffer {
  const refuse = (why: string): never => {
    metrics.verifyFailures.inc();
    throw new ThawError('snapshot-damaged', `${name} ${why}`);
  };
  if (object.length < headerBytes) refuse('is cut off');
  if (object.toString('latin1', 0, magicBytes) !== kind.magic) refuse('is something else');
  const version = object.readUInt16LE(versionOffset);
  if (version !== kind.version) refuse(`has format version ${version}, not ${kind.version}`);
  if (object.readUInt16LE(reservedOffset) !== 0) refuse('has a header that is not of this version');
  const payloadBytes = object.readUInt32LE(lengthOffset);
  if (payloadBytes > kind.maxPayloadBytes) refuse('claims to be bigger than allowed');
  if (object.length !== headerBytes + payloadBytes) refuse('does not have the length it claims');
  const mac = object.subarray(macOffset, headerBytes);
  if (!timingSafeEqual(mac, macOf(kind, name, key, object))) refuse('was not signed with this cluster key');
  return object.subarray(headerBytes);
}

function macOf(kind: SignedKind, name: string, key: ClusterKey, object: Buffer): Buffer {
  const nameBytes = Buffer.from(name);
  const nameLength = Buffer.alloc(4);
  nameLength.writeUInt32LE(nameBytes.length);
  return createHmac('sha256', key.for(kind.magic))
    .update(nameLength)
    .update(nameBytes)
    .update(object.subarray(0, macOffset))
    .update(object.subarray(headerBytes))
    .digest();
}
