// Owns cutting a decoded frame up by the places of an image that its pages belong to.
// Invariant: a frame's places ascend, and none reaches beyond the image's exact size.
import { pageBytes } from '../snapshot/extents.ts';
import type { Image } from '../snapshot/manifest.ts';
import { FramePlaces } from '../snapshot/materialise-image.ts';

/** Pages of a frame, and where in the image they belong. */
export interface Place {
  offsetBytes: number;
  bytes: Buffer;
}

export class ImagePlaces {
  readonly #image: Image;
  readonly #places: FramePlaces;

  constructor(image: Image) {
    this.#image = image;
    this.#places = new FramePlaces(image.extents);
  }

  get sizeBytes(): number {
    return this.#image.sizeBytes;
  }

  /** Those that the image needs, by where each is needed first. */
  frames(): number[] {
    return [...new Set(this.#image.extents.frame)];
  }

  spread(frame: number, bytes: Buffer): Place[] {
    const { extents, sizeBytes } = this.#image;
    const { startPage, pageCount, framePage } = extents;
    return Array.from(this.#places.rowsOf(frame), (row) => {
      const offsetBytes = startPage[row]! * pageBytes;
      const length = Math.min(pageCount[row]! * pageBytes, sizeBytes - offsetBytes);
      const at = framePage[row]! * pageBytes;
      return { offsetBytes, bytes: bytes.subarray(at, at + length) };
    });
  }
}
