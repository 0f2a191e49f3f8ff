// Owns images for tests of pagefs: known content cut into frames, and a frame reader that can be slow, fail or lie still.
// Invariant: the same seed makes the same image in every process, so a reader elsewhere can be checked against it.
import { createHash } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { ThawError } from '../../shared/errors.ts';
import { extentsOfRows, pageBytes } from '../snapshot/extents.ts';
import type { Image } from '../snapshot/manifest.ts';
import type { FrameRead, FrameTable } from '../snapshot/segment.ts';
import type { RequestOptions } from '../store/blob-store.ts';
import type { FrameReading } from './frame-source.ts';

export interface TestImage {
  image: Image;
  frames: FrameTable;
  /** The whole page file as a reader must see it. */
  content: Buffer;
  /** Frame → its bytes. */
  frameBytes: (frame: number) => Buffer;
}

export const framePages = 16;

/**
 * Every fourth frame's worth of pages is a hole; the others are content whose first word in each page is its number.
 * Frames lie in the segment in reverse, so that order in the file and in the segment differ.
 */
export function testImage(pages: number): TestImage {
  const content = Buffer.alloc(pages * pageBytes);
  const rows: number[] = [];
  const groups: number[] = [];
  for (let start = 0; start < pages; start += framePages)
    if ((start / framePages) % 4 !== 3) groups.push(start);
  const frames = frameTable(groups.length);
  for (const [index, start] of groups.entries()) {
    const count = Math.min(framePages, pages - start);
    const frame = groups.length - 1 - index;
    for (let page = start; page < start + count; page++) fillPage(content, page);
    rows.push(start, count, frame, 0);
    setFrame(frames, frame, content.subarray(start * pageBytes, (start + count) * pageBytes));
  }
  const extents = extentsOfRows(rows);
  const startOf = (frame: number) => groups[groups.length - 1 - frame]! * pageBytes;
  return {
    image: { sizeBytes: content.length, extents },
    frames,
    content,
    frameBytes: (frame) =>
      content.subarray(startOf(frame), startOf(frame) + frames.pageCount[frame]! * pageBytes),
  };
}

function fillPage(content: Buffer, page: number): void {
  const at = page * pageBytes;
  content.fill((page % 251) + 1, at, at + pageBytes);
  content.writeUInt32LE(page + 1, at);
}

function frameTable(count: number): FrameTable {
  return {
    segment: new Uint32Array(count),
    offsetBytes: Uint32Array.from({ length: count }, (_, frame) => frame * framePages * pageBytes),
    storedBytes: new Uint32Array(count),
    pageCount: new Uint32Array(count),
    sha256: new Uint8Array(count * 32),
  };
}

function setFrame(frames: FrameTable, frame: number, bytes: Buffer): void {
  frames.storedBytes[frame] = bytes.length;
  frames.pageCount[frame] = bytes.length / pageBytes;
  frames.sha256.set(createHash('sha256').update(bytes).digest(), frame * 32);
}

/** A frame reader over a test image, with the trouble that a test wants. */
export class TestReader implements FrameReading {
  readonly image: TestImage;
  /** Before the first byte of every read. */
  delayMs = 0;
  /** Reads of these frames fail, with this code. */
  failing = new Map<number | 'all', 'store-unavailable' | 'snapshot-damaged'>();
  /** Reads wait for this before they are answered, whatever their signal says. */
  held: Promise<void> | undefined;
  readonly reads: FrameRead[] = [];

  constructor(image: TestImage) {
    this.image = image;
  }

  get readBytes(): number {
    return this.reads.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  }

  async read(plan: FrameRead, _options?: RequestOptions): ReturnType<FrameReading['read']> {
    this.reads.push(plan);
    await this.held;
    if (this.delayMs > 0) await delay(this.delayMs);
    for (const frame of plan.frames) {
      const code = this.failing.get(frame) ?? this.failing.get('all');
      if (code) throw new ThawError(code, `injected for frame ${frame}`);
    }
    return plan.frames.map((frame) => ({
      frame,
      bytes: Buffer.from(this.image.frameBytes(frame)),
      tier: 'store',
    }));
  }
}
