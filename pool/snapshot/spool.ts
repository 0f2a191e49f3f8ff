// Owns segments on their way to the store: frames are appended to files in the spool directory until one is full.
// Refuses to own upload and meaning. Invariant: a segment's name is the SHA-256 of exactly the bytes in its file; a
// spool directory that a crash left is emptied before it is used again.
import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, mkdir, open, rm, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { ThawError } from '../../shared/errors.ts';
import type { SegmentRef } from './manifest.ts';
import { maxSegmentBytes } from './segment.ts';

export interface SpooledSegment extends SegmentRef {
  path: string;
}

/** Where a frame came to stand: the segment's number in this spool, and the position in it. */
export interface FramePlace {
  segment: number;
  offsetBytes: number;
}

export class Spool {
  readonly #dir: string;
  readonly #segments: SpooledSegment[] = [];
  #open: { file: FileHandle; path: string; hash: Hash; sizeBytes: number } | undefined;

  private constructor(dir: string) {
    this.#dir = dir;
  }

  static async create(dir: string): Promise<Spool> {
    await rm(dir, { recursive: true, force: true });
    await mkdir(dir, { recursive: true, mode: 0o700 });
    return new Spool(dir);
  }

  /** Where the next frames will stand. They go into one segment together. */
  get next(): FramePlace {
    return { segment: this.#segments.length, offsetBytes: this.#open?.sizeBytes ?? 0 };
  }

  /** @param frames stored bytes of whole frames. @throws ThawError `no-space`. */
  async append(frames: Uint8Array): Promise<void> {
    if (frames.length === 0) return;
    try {
      this.#open ??= await this.#begin();
      this.#open.hash.update(frames);
      await this.#open.file.writeFile(frames);
      this.#open.sizeBytes += frames.length;
      if (this.#open.sizeBytes >= maxSegmentBytes) await this.#finish();
    } catch (error) {
      throw spaceError('the spool directory', error);
    }
  }

  async end(): Promise<SpooledSegment[]> {
    if (this.#open) await this.#finish();
    return this.#segments;
  }

  async remove(): Promise<void> {
    await this.#open?.file.close();
    this.#open = undefined;
    await rm(this.#dir, { recursive: true, force: true });
  }

  async #begin() {
    const path = join(this.#dir, `segment-${this.#segments.length}`);
    return { file: await open(path, 'wx', 0o600), path, hash: createHash('sha256'), sizeBytes: 0 };
  }

  async #finish(): Promise<void> {
    const { file, path, hash, sizeBytes } = this.#open!;
    this.#open = undefined;
    await file.close();
    this.#segments.push({ path, sizeBytes, sha256: hash.digest('hex') });
  }
}

/** @throws ThawError `no-space` when less than `reserveBytes` would be left. */
export async function checkSpace(dir: string, neededBytes: number, reserveBytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(dir);
  const freeBytes = bavail * bsize;
  if (freeBytes - neededBytes < reserveBytes)
    throw new ThawError(
      'no-space',
      `${dir}: ${freeBytes} bytes are free, ${neededBytes} needed beside a reserve of ${reserveBytes}`,
    );
}

/** A full disk as `no-space`; any other error as it is. */
export function spaceError(what: string, error: unknown): unknown {
  const { code, message } = error as NodeJS.ErrnoException;
  const full = code === 'ENOSPC' || code === 'EDQUOT';
  return full ? new ThawError('no-space', `${what}: ${message}`, { cause: error }) : error;
}
