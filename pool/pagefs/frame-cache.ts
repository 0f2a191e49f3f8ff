// Owns the decoded frames that stay in memory: the last used ones, within a fixed number of bytes.
// Invariant: what it holds has been verified, and never exceeds its capacity.

export class FrameCache {
  readonly #capacityBytes: number;
  // Insertion order is the order of use: a used frame is inserted again.
  readonly #frames = new Map<string, Buffer>();
  #sizeBytes = 0;

  constructor(capacityBytes: number) {
    this.#capacityBytes = capacityBytes;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get(key: string): Buffer | undefined {
    const bytes = this.#frames.get(key);
    if (bytes === undefined) return undefined;
    this.#frames.delete(key);
    this.#frames.set(key, bytes);
    return bytes;
  }

  has(key: string): boolean {
    return this.#frames.has(key);
  }

  set(key: string, bytes: Buffer): void {
    this.delete(key);
    if (bytes.length > this.#capacityBytes) return;
    this.#frames.set(key, bytes);
    this.#sizeBytes += bytes.length;
    for (const oldest of this.#frames.keys()) {
      if (this.#sizeBytes <= this.#capacityBytes) break;
      this.delete(oldest);
    }
  }

  delete(key: string): void {
    const bytes = this.#frames.get(key);
    if (bytes === undefined) return;
    this.#frames.delete(key);
    this.#sizeBytes -= bytes.length;
  }
}
