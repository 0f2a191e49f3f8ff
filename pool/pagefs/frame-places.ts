// Owns the way back from a frame to the places of an image that its pages belong to.
// Invariant: a frame's places ascend, and none reaches beyond the image's exact size.
import { pageBytes } from '../snapshot/extents.ts';
import type { Image } from '../snapshot/manifest.ts';

export class FramePlaces {
  readonly sizeBytes: number;
  readonly #extents: Image['extents'];
  readonly #rows = new Map<number, number[]>();

  constructor({ extents, sizeBytes }: Image) {
    this.sizeBytes = sizeBytes;
    this.#extents = extents;
    for (const [row, frame] of extents.frame.entries()) {
      const rows = this.#rows.get(frame);
      if (rows) rows.push(row);
      else this.#rows.set(frame, [row]);
    }
  }

  /** Those that the image needs, by where each is needed first. */
  frames(): number[] {
    return [...this.#rows.keys()];
  }

  /** The bytes of a decoded frame, cut up by where they go. */
  spread(frame: number, bytes: Buffer): { offsetBytes: number; bytes: Buffer }[] {
    const { startPage, pageCount, framePage } = this.#extents;
    return (this.#rows.get(frame) ?? []).map((row) => {
      const offsetBytes = startPage[row]! * pageBytes;
      const sizeBytes = Math.min(pageCount[row]! * pageBytes, this.sizeBytes - offsetBytes);
      const at = framePage[row]! * pageBytes;
      return { offsetBytes, bytes: bytes.subarray(at, at + sizeBytes) };
    });
  }
}
