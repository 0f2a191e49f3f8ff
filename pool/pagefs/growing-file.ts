// Owns a plain page file that is not whole yet: frames are written into it as they arrive, and read back from it.
// Refuses to own fetching. Invariant: the file gets its final name only when every frame of the layout is in it, each
// verified before it was written; what an earlier run left unfinished is not trusted and begins anew.
import { type FileHandle, open, rename, rm } from 'node:fs/promises';
import type { PageLayout } from './page-layout.ts';

export class GrowingFile {
  readonly path: string;
  readonly #layout: PageLayout;
  readonly #file: FileHandle;
  readonly #present: Uint8Array;
  #missing: number;
  #sealed: Promise<void> | undefined;

  private constructor(path: string, layout: PageLayout, file: FileHandle) {
    this.path = path;
    this.#layout = layout;
    this.#file = file;
    this.#present = new Uint8Array(layout.frames.length);
    this.#missing = layout.frames.length;
  }

  /** @param path the final one. Until it is complete the file lies beside it. */
  static async create(path: string, layout: PageLayout): Promise<GrowingFile> {
    const file = await open(partialOf(path), 'w+', 0o600);
    try {
      // Sparse: what the layout calls zero is a hole.
      await file.truncate(layout.sizeBytes);
      return new GrowingFile(path, layout, file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  get complete(): boolean {
    return this.#missing === 0;
  }

  get missingFrames(): number {
    return this.#missing;
  }

  has(frame: number): boolean {
    return this.#present[frame] === 1;
  }

  /** @param bytes the decoded, verified frame. Writing one twice writes the same. */
  async write(frame: number, bytes: Buffer): Promise<void> {
    if (this.has(frame)) return;
    for (const extent of this.#layout.extentsOf(frame))
      await writeFully(
        this.#file,
        bytes.subarray(extent.frameOffsetBytes, extent.frameOffsetBytes + extent.sizeBytes),
        extent.offsetBytes,
      );
    if (this.has(frame)) return;
    this.#present[frame] = 1;
    this.#missing--;
  }

  /** Only of ranges whose frames are all here. */
  async readRange(offsetBytes: number, sizeBytes: number): Promise<Buffer> {
    const bytes = Buffer.allocUnsafe(sizeBytes);
    let filled = 0;
    while (filled < sizeBytes) {
      const { bytesRead } = await this.#file.read(bytes, filled, sizeBytes - filled, offsetBytes + filled);
      if (bytesRead === 0) throw new Error(`${this.path} has become shorter`);
      filled += bytesRead;
    }
    return bytes;
  }

  /** Makes it durable and gives it its name; once. */
  seal(): Promise<void> {
    if (!this.complete) throw new Error(`${this.path} lacks ${this.#missing} frames`);
    this.#sealed ??= (async () => {
      await this.#file.datasync();
      await rename(partialOf(this.path), this.path);
    })();
    return this.#sealed;
  }

  /** An unfinished file is removed. */
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
