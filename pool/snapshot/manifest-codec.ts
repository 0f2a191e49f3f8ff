// Owns the bytes of a manifest: MessagePack in a signed envelope, tables as little-endian columns.
// Invariant: the same manifest gives the same bytes; what `decodeManifest` returns has passed `checkManifest`.
import { endianness } from 'node:os';
import { Packr } from 'msgpackr';
import { ThawError } from '../../shared/errors.ts';
import type { ExtentTable } from './extents.ts';
import { checkManifest, type ImageName, imageNames, type Manifest } from './manifest.ts';
import type { FrameTable } from './segment.ts';
import { type ClusterKey, openSigned, type SignedKind, sealSigned } from './signed-object.ts';
import { manifestKey } from './store-keys.ts';

export const manifestKind: SignedKind = {
  magic: 'THAWSNAP',
  version: 2,
  // 64 GiB of guest memory without two neighbouring pages in one extent would take this much.
  maxPayloadBytes: 512 * 1024 * 1024,
};

// Plain maps, no extensions: any MessagePack reader can read it.
const packr = new Packr({
  useRecords: false,
  variableMapSize: true,
  moreTypes: false,
  int64AsType: 'number',
});

export function encodeManifest(manifest: Manifest, key: ClusterKey): Buffer {
  checkManifest(manifest);
  const payload = packr.pack(wireOf(manifest));
  return sealSigned(manifestKind, manifestKey(manifest.snapshotId), key, payload);
}

/** @throws ThawError `snapshot-damaged`; nothing of the object was used then. */
export function decodeManifest(object: Buffer, snapshotId: string, key: ClusterKey): Manifest {
  const payload = openSigned(manifestKind, manifestKey(snapshotId), key, object);
  try {
    const manifest = manifestOf(packr.unpack(payload) as Wire);
    checkManifest(manifest);
    if (manifest.snapshotId !== snapshotId) throw new Error(`it is of ${manifest.snapshotId}`);
    return manifest;
  } catch (error) {
    if (error instanceof ThawError && error.code === 'snapshot-damaged') throw error;
    throw new ThawError('snapshot-damaged', `manifest of ${snapshotId}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

type Columns<T> = { [K in keyof T]: Uint8Array };
type WireImage = { sizeBytes: number; extents: Columns<ExtentTable> };
type Wire = Omit<Manifest, 'parentId' | 'source' | 'prime' | 'images' | 'frames'> & {
  parentId: string | null;
  source: string | null;
  prime: string[] | null;
  images: Record<ImageName, WireImage>;
  frames: Columns<FrameTable>;
};

/** The order of keys here is the order in the bytes. */
function wireOf(manifest: Manifest): Wire {
  const { frames, images } = manifest;
  const imageOf = (name: ImageName): WireImage => {
    const { startPage, pageCount, frame, framePage } = images[name].extents;
    return {
      sizeBytes: images[name].sizeBytes,
      extents: {
        startPage: bytesOf(startPage),
        pageCount: bytesOf(pageCount),
        frame: bytesOf(frame),
        framePage: bytesOf(framePage),
      },
    };
  };
  const { hypervisor, hypervisorVersion, machine, cpu, imageDigest } = manifest.compatibility;
  return {
    snapshotId: manifest.snapshotId,
    parentId: manifest.parentId ?? null,
    kind: manifest.kind,
    names: manifest.names,
    source: manifest.source ?? null,
    depth: manifest.depth,
    createdAtMs: manifest.createdAtMs,
    nonce: manifest.nonce,
    memoryMb: manifest.memoryMb,
    vcpus: manifest.vcpus,
    prime: manifest.prime ?? null,
    compatibility: { hypervisor, hypervisorVersion, machine, cpu, imageDigest },
    images: { memory: imageOf('memory'), disk: imageOf('disk'), devices: imageOf('devices') },
    frames: {
      segment: bytesOf(frames.segment),
      offsetBytes: bytesOf(frames.offsetBytes),
      storedBytes: bytesOf(frames.storedBytes),
      pageCount: bytesOf(frames.pageCount),
      sha256: frames.sha256,
    },
    segments: manifest.segments.map(({ sha256, sizeBytes }) => ({ sha256, sizeBytes })),
    addedBytes: manifest.addedBytes,
    facts: Object.fromEntries(Object.entries(manifest.facts).sort(([a], [b]) => (a < b ? -1 : 1))),
  };
}

function manifestOf(wire: Wire): Manifest {
  const { images, frames } = wire;
  const imageOf = (name: ImageName) => {
    const { startPage, pageCount, frame, framePage } = images[name].extents;
    return {
      sizeBytes: images[name].sizeBytes,
      extents: {
        startPage: columnOf(startPage),
        pageCount: columnOf(pageCount),
        frame: columnOf(frame),
        framePage: columnOf(framePage),
      },
    };
  };
  return {
    ...wire,
    parentId: wire.parentId ?? undefined,
    source: wire.source ?? undefined,
    prime: wire.prime ?? undefined,
    images: Object.fromEntries(imageNames.map((name) => [name, imageOf(name)])) as Manifest['images'],
    frames: {
      segment: columnOf(frames.segment),
      offsetBytes: columnOf(frames.offsetBytes),
      storedBytes: columnOf(frames.storedBytes),
      pageCount: columnOf(frames.pageCount),
      sha256: new Uint8Array(binary(frames.sha256)),
    },
  };
}

const bytesPerCell = 4;

function bytesOf(column: Uint32Array): Buffer {
  const bytes = Buffer.from(column.buffer, column.byteOffset, column.byteLength);
  return endianness() === 'LE' ? bytes : Buffer.from(bytes).swap32();
}

/** A copy: what msgpackr returns is a view into the object at any alignment. */
function columnOf(bytes: unknown): Uint32Array {
  const source = binary(bytes);
  if (source.length % bytesPerCell !== 0) throw new Error('a column is not of whole numbers');
  const copy = new Uint8Array(source);
  if (endianness() === 'BE') Buffer.from(copy.buffer).swap32();
  return new Uint32Array(copy.buffer);
}

function binary(value: unknown): Uint8Array {
  if (!(value instanceof Uint8Array)) throw new Error('a column is not binary');
  return value;
}
