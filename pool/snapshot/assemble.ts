// Owns turning compressed pieces and a parent's manifest into the tables of a new manifest.
// Invariant: the new manifest names only frames and segments that its extents need: what children overwrote is let go.
import type { CompressedPiece } from './compress.ts';
import { pageKinds } from './compress-worker.ts';
import {
  ExtentBuilder,
  type ExtentTable,
  laidOver,
  pageBytes,
  sorted,
  withFrames,
  zeroFrame,
} from './extents.ts';
import { type Image, type ImageName, imageNames, type Manifest, type SegmentRef } from './manifest.ts';
import { emptyFrames, type FrameTable, hashBytes } from './segment.ts';
import type { FramePlace } from './spool.ts';

export interface PageCounts {
  stored: number;
  zero: number;
  equalToParent: number;
}

/** Frames of this snapshot's own, numbered from 0, in its own segments. */
export class NewFrames {
  readonly #segment: number[] = [];
  readonly #offsetBytes: number[] = [];
  readonly #storedBytes: number[] = [];
  readonly #pageCount: number[] = [];
  readonly #sha256: Uint8Array[] = [];

  get count(): number {
    return this.#segment.length;
  }

  add(piece: CompressedPiece, place: FramePlace): void {
    let { offsetBytes } = place;
    for (const [frame, storedBytes] of piece.storedBytes.entries()) {
      this.#segment.push(place.segment);
      this.#offsetBytes.push(offsetBytes);
      this.#storedBytes.push(storedBytes);
      this.#pageCount.push(piece.pageCounts[frame]!);
      offsetBytes += storedBytes;
    }
    this.#sha256.push(piece.sha256);
  }

  table(): FrameTable {
    return {
      segment: Uint32Array.from(this.#segment),
      offsetBytes: Uint32Array.from(this.#offsetBytes),
      storedBytes: Uint32Array.from(this.#storedBytes),
      pageCount: Uint32Array.from(this.#pageCount),
      sha256: new Uint8Array(Buffer.concat(this.#sha256)),
    };
  }
}

/** What became of the changed pages of one image; frames are numbered as in `NewFrames`. */
export class ImageChanges {
  readonly pages: PageCounts = { stored: 0, zero: 0, equalToParent: 0 };
  readonly #extents = new ExtentBuilder();

  add(piece: CompressedPiece, firstFrame: number): void {
    const { runs, kinds, pageCounts } = piece;
    let at = 0;
    let frame = 0;
    let framePage = 0;
    for (let row = 0; row < runs.file.length; row++) {
      const firstPage = runs.offsetBytes[row]! / pageBytes;
      const count = Math.ceil(runs.sizeBytes[row]! / pageBytes);
      for (let page = firstPage; page < firstPage + count; page++) {
        const kind = kinds[at++];
        if (kind === pageKinds.equalToParent) {
          this.pages.equalToParent += 1;
        } else if (kind === pageKinds.zero) {
          this.pages.zero += 1;
          this.#extents.add(page, 1, zeroFrame, 0);
        } else {
          this.pages.stored += 1;
          this.#extents.add(page, 1, firstFrame + frame, framePage++);
          if (framePage === pageCounts[frame]) {
            frame += 1;
            framePage = 0;
          }
        }
      }
    }
  }

  /** Ascending, whatever the order of the pieces was. */
  table(): ExtentTable {
    return sorted(this.#extents.table());
  }
}

export interface AssembledTables {
  images: Record<ImageName, Image>;
  frames: FrameTable;
  segments: SegmentRef[];
}

export function assemble(
  parent: Manifest | undefined,
  sizes: Record<ImageName, number>,
  changes: Record<ImageName, ImageChanges>,
  newFrames: FrameTable,
  newSegments: readonly SegmentRef[],
): AssembledTables {
  const below = parent?.frames ?? emptyFrames();
  const firstNew = below.segment.length;
  const flat = imageNames.map((name): [ImageName, ExtentTable] => {
    const own = changes[name].table();
    const moved = withFrames(own, (frame) => (frame === zeroFrame ? zeroFrame : firstNew + frame));
    // The state of devices is never a change to an earlier one.
    const old = name === 'devices' ? undefined : parent?.images[name].extents;
    return [name, old ? laidOver(old, moved) : laidOver(noExtents, moved)];
  });
  const used = new Uint8Array(firstNew + newFrames.segment.length);
  for (const [, extents] of flat) for (const frame of extents.frame) used[frame] = 1;
  const segmentsBelow = parent?.segments ?? [];
  const { frames, frameOf, segments } = compacted(
    used,
    concatenated(below, newFrames, segmentsBelow.length),
    [...segmentsBelow, ...newSegments],
  );
  const images = Object.fromEntries(
    flat.map(([name, extents]) => [
      name,
      { sizeBytes: sizes[name], extents: withFrames(extents, (frame) => frameOf[frame]!) },
    ]),
  ) as Record<ImageName, Image>;
  return { images, frames, segments };
}

const noExtents = new ExtentBuilder().table();

function concatenated(a: FrameTable, b: FrameTable, segmentsOfA: number): FrameTable {
  const joined = (x: Uint32Array, y: Uint32Array) => {
    const column = new Uint32Array(x.length + y.length);
    column.set(x);
    column.set(y, x.length);
    return column;
  };
  return {
    segment: joined(
      a.segment,
      b.segment.map((segment) => segment + segmentsOfA),
    ),
    offsetBytes: joined(a.offsetBytes, b.offsetBytes),
    storedBytes: joined(a.storedBytes, b.storedBytes),
    pageCount: joined(a.pageCount, b.pageCount),
    sha256: new Uint8Array(Buffer.concat([a.sha256, b.sha256])),
  };
}

/** Only the frames in use and their segments; of two segments with one name, one. */
function compacted(used: Uint8Array, all: FrameTable, allSegments: readonly SegmentRef[]) {
  const frameOf = new Uint32Array(used.length);
  const frames = emptyFrames(used.reduce((count, is) => count + is, 0));
  const segments: SegmentRef[] = [];
  const segmentByName = new Map<string, number>();
  const segmentOf = (index: number) => {
    const { sha256, sizeBytes } = allSegments[index]!;
    let known = segmentByName.get(sha256);
    if (known === undefined) {
      known = segments.push({ sha256, sizeBytes }) - 1;
      segmentByName.set(sha256, known);
    }
    return known;
  };
  let next = 0;
  for (let frame = 0; frame < used.length; frame++) {
    if (used[frame] === 0) continue;
    frames.segment[next] = segmentOf(all.segment[frame]!);
    frames.offsetBytes[next] = all.offsetBytes[frame]!;
    frames.storedBytes[next] = all.storedBytes[frame]!;
    frames.pageCount[next] = all.pageCount[frame]!;
    const digest = all.sha256.subarray(frame * hashBytes, (frame + 1) * hashBytes);
    frames.sha256.set(digest, next * hashBytes);
    frameOf[frame] = next++;
  }
  return { frames, frameOf, segments };
}
