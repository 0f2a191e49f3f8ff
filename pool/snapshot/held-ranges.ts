// Owns stored bytes that were fetched before anybody asked for a frame of them: a tier in front of the store.
// Refuses to own which (pagefs) and verification (frame-reader.ts): they stay as they came until a frame is needed, for
// what is never needed need not be hashed and decompressed. Invariant: bounded; a range that could not be had is not held.
import type { ByteRange, RequestOptions } from '../store/blob-store.ts';
import type { FrameTier } from './frame-reader.ts';

interface Held extends ByteRange {
  sha256: string;
  bytes: Promise<Buffer | undefined>;
}

export class HeldRanges implements FrameTier {
  readonly name = 'held';
  readonly #store: FrameTier;
  readonly #capacityBytes: number;
  /** Oldest first. */
  #ranges: Held[] = [];

  constructor(store: FrameTier, capacityBytes: number) {
    this.#store = store;
    this.#capacityBytes = capacityBytes;
  }

  /** Settles when the range is here or will not be. */
  async hold(sha256: string, { offsetBytes, sizeBytes }: ByteRange, options: RequestOptions): Promise<void> {
    const bytes = this.#store.read(sha256, { offsetBytes, sizeBytes }, options).catch(() => undefined);
    const held = { sha256, offsetBytes, sizeBytes, bytes };
    this.#ranges.push(held);
    this.#bound();
    if ((await bytes) === undefined) this.#ranges = this.#ranges.filter((other) => other !== held);
  }

  /** One that is on its way is waited for: it comes sooner than another would. */
  async read(sha256: string, { offsetBytes, sizeBytes }: ByteRange): Promise<Buffer | undefined> {
    const held = this.#ranges.find(
      (range) =>
        range.sha256 === sha256 &&
        range.offsetBytes <= offsetBytes &&
        range.offsetBytes + range.sizeBytes >= offsetBytes + sizeBytes,
    );
    const bytes = await held?.bytes;
    const start = offsetBytes - (held?.offsetBytes ?? 0);
    return bytes?.subarray(start, start + sizeBytes);
  }

  #bound(): void {
    let bytes = this.#ranges.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    while (bytes > this.#capacityBytes) bytes -= this.#ranges.shift()!.sizeBytes;
  }
}
