// Owns telling what a guest needs from what the kernel guesses: a read of many pages is a guess, and may be refused.
// Refuses to own when guesses are welcome (served-file.ts). Invariant: no page is refused twice, so whoever really needs
// it gets it at the second try, which the kernel makes by itself.
import { pageBytes, pagesIn } from '../snapshot/extents.ts';

export class Speculation {
  readonly #refused: Uint8Array;

  constructor(sizeBytes: number) {
    this.#refused = new Uint8Array(pagesIn(sizeBytes));
  }

  /** @returns whether the read is to be refused; if so, its pages will not be refused again. */
  refuses(offsetBytes: number, sizeBytes: number): boolean {
    const pages = this.#refused.subarray(
      Math.floor(offsetBytes / pageBytes),
      pagesIn(offsetBytes + sizeBytes),
    );
    if (pages.length <= 1 || pages.includes(1)) return false;
    pages.fill(1);
    return true;
  }
}
