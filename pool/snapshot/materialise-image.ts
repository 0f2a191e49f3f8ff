// Owns making a plain local file of an image: all frames, verified, each page where it belongs; holes where it is zero.
// Refuses to own serving pages meanwhile (pagefs). Invariant: the file appears under its name only when it is whole and
// on disk.
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import type { RequestOptions } from '../store/blob-store.ts';
import { runRequest } from '../store/request.ts';
import { type ExtentTable, pageBytes } from './extents.ts';
import type { FrameReader, OpenedFrame } from './frame-reader.ts';
import type { Image, ImageName, Manifest } from './manifest.ts';
import { planReads } from './segment.ts';

const readsAtOnce = 4;
const defaultTimeoutMs = 600_000;

/** @param path absent; sparse when done. @throws ThawError `snapshot-damaged` | `store-unavailable` | `deadline-exceeded` | `no-space`. */
export function materialise(
  manifest: Manifest,
  name: ImageName,
  reader: FrameReader,
  path: string,
  options: RequestOptions = {},
): Promise<void> {
  const partialPath = `${path}.partial`;
  const withEnd = { timeoutMs: defaultTimeoutMs, ...options };
  return runRequest(`materialising the ${name} of ${manifest.snapshotId}`, withEnd, async ({ signal }) => {
    try {
      await using file = await open(partialPath, 'w', 0o600);
      const image = manifest.images[name];
      await file.truncate(image.sizeBytes);
      await writeFrames(file, image, manifest, reader, signal);
      await file.sync();
      await rename(partialPath, path);
    } catch (error) {
      await rm(partialPath, { force: true });
      throw error;
    }
  });
}

async function writeFrames(
  file: FileHandle,
  image: Image,
  manifest: Manifest,
  reader: FrameReader,
  signal: AbortSignal,
): Promise<void> {
  const places = new FramePlaces(image.extents);
  const reads = planReads(manifest.frames, image.extents.frame).reverse();
  const lane = async () => {
    for (let read = reads.pop(); read; read = reads.pop()) {
      for (const opened of await reader.read(read, { signal })) await writeFrame(file, opened, places, image);
      signal.throwIfAborted();
    }
  };
  await Promise.all(Array.from({ length: readsAtOnce }, lane));
}

async function writeFrame(
  file: FileHandle,
  { frame, bytes }: OpenedFrame,
  places: FramePlaces,
  { extents, sizeBytes }: Image,
): Promise<void> {
  for (const row of places.rowsOf(frame)) {
    const from = extents.framePage[row]! * pageBytes;
    const at = extents.startPage[row]! * pageBytes;
    const length = Math.min(extents.pageCount[row]! * pageBytes, sizeBytes - at);
    await file.write(bytes, from, length, at);
  }
}

/** Which rows of a table name which frame. */
export class FramePlaces {
  readonly #rows: Uint32Array;
  readonly #frames: Uint32Array;

  constructor({ frame }: ExtentTable) {
    this.#rows = Uint32Array.from(frame.keys()).sort((a, b) => frame[a]! - frame[b]! || a - b);
    this.#frames = this.#rows.map((row) => frame[row]!);
  }

  *rowsOf(frame: number): Generator<number> {
    let low = 0;
    let high = this.#frames.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#frames[middle]! < frame) low = middle + 1;
      else high = middle;
    }
    for (; this.#frames[low] === frame; low++) yield this.#rows[low]!;
  }
}
