// Owns a plain page file that is not whole yet: frames are written into it as they arrive, and read back from it.
// Refuses to own fetching. Invariant: the file gets its final name only when every frame of the image is in it, each
// verified before it was written; what an earlier run left unfinished is not trusted and begins anew.
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import type { ImagePlaces } from './image-places.ts';

export class GrowingFile {
  readonly path: string;
  readonly #places: ImagePlaces;
  readonly #file: FileHandle;
  readonly #missing: Set<number>;
  #sealed: Promise<void> | undefined;

  private constructor(path: string, places: ImagePlaces, file: FileHandle) {
    this.path = path;
    this.#places = places;
    this.#file = file;
    this.#missing = new Set(places.frames());
  }

  /** @param path the final one. Until it is whole the file lies beside it. */
  static async create(path: string, places: ImagePlaces): Promise<GrowingFile> {
    const file = await open(partialOf(path), 'w+', 0o600);
    try {
      // Sparse: what no extent covers is zero, and a hole.
      await file.truncate(places.sizeBytes);
      return new GrowingFile(path, places, file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get missingFrames(): number {
    return this.#missing.size;
  }

  /** Not written yet, in the order of the page file. */
  missing(): number[] {
    return [...this.#missing];
  }

  has(frame: number): boolean {
    return !this.#missing.has(frame);
  }

  /** @param bytes the decoded, verified frame. Writing one twice writes the same. */
  async write(frame: number, bytes: Buffer): Promise<void> {
    for (const { offsetBytes, bytes: piece } of this.#places.spread(frame, bytes))
      await writeFully(this.#file, piece, offsetBytes);
    this.#missing.delete(frame);
  }

  /** Only of ranges whose frames are all here. */
  async readRange(offsetBytes: number, sizeBytes: number): Promise<Buffer> {
    return readFully(this.#file, offsetBytes, sizeBytes, this.path);
  }

  /** Makes it durable and gives it its name; once. */
  seal(): Promise<void> {
    if (this.missingFrames > 0)
      throw new ThawError('internal', `${this.path} still lacks ${this.missingFrames} frames`);
    this.#sealed ??= (async () => {
      await this.#file.datasync();
      await rename(partialOf(this.path), this.path);
    })();
    return this.#sealed;
  }

  /** What is unfinished is removed. */
  async close(): Promise<void> {
    await this.#sealed?.catch(() => {});
    await this.#file.close();
    await rm(partialOf(this.path), { force: true });
  }
}

const partialOf = (path: string): string => `${path}.partial`;

async function writeFully(file: FileHandle, bytes: Buffer, offsetBytes: number): Promise<void> {
  for (let done = 0; done < bytes.length; )
    done += (await file.write(bytes, done, bytes.length - done, offsetBytes + done)).bytesWritten;
}

/** @throws Error when the file ends before. */
export async function readFully(
  file: FileHandle,
  offsetBytes: number,
  sizeBytes: number,
  path: string,
): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(sizeBytes);
  for (let done = 0; done < sizeBytes; ) {
    const { bytesRead } = await file.read(bytes, done, sizeBytes - done, offsetBytes + done);
    if (bytesRead === 0) throw new ThawError('snapshot-damaged', `${path} has become shorter`);
    done += bytesRead;
  }
  return bytes;
}
