// Owns what of a capture is read in which order, and so how it is laid out in segments: device state, what clones need
// first, memory, disk. Refuses to own reading (compress.ts). Invariant: every changed page is in exactly one plan.
import { stat } from 'node:fs/promises';
import { ThawError } from '../../shared/errors.ts';
import { type ExtentTable, type Piece, pageBytes, pagesIn, piecesOf } from './extents.ts';
import { checkSource, wholeFileSource } from './image-source.ts';
import type { Stretch } from './local-capture.ts';
import type { ImageName, Manifest } from './manifest.ts';
import type { LocalCapture } from './publish.ts';
import { excluding, flatten, type RunTable, restrictedTo } from './run-table.ts';
import type { FrameTable } from './segment.ts';

export interface ReadPlan {
  name: ImageName;
  runs: RunTable;
  /** Pages equal to these are not stored. */
  parentRuns: RunTable | undefined;
}

/** Devices stand first, then what is needed first: a cold restore gets both in one read. */
export async function plansOf(capture: LocalCapture, parent: Manifest | undefined): Promise<ReadPlan[]> {
  const devices = await wholeFileSource(capture.devicesPath);
  const { size } = await stat(capture.devicesPath);
  const plans: ReadPlan[] = [{ name: 'devices', runs: flatten([devices], size), parentRuns: undefined }];
  const rest: ReadPlan[] = [];
  for (const name of ['memory', 'disk'] as const) {
    const { sizeBytes, sources, parent: parentSources, first = [] } = capture[name];
    if (parent && parent.images[name].sizeBytes !== sizeBytes)
      throw new ThawError('conflict', `the ${name} of ${capture.snapshotId} is not of its parent's size`);
    for (const source of sources) checkSource(source, sizeBytes);
    const runs = flatten(sources, sizeBytes);
    const below = parent && parentSources && { manifest: parent, sources: parentSources };
    const parentRuns = below && flatten(below.sources, sizeBytes);
    const scattered = below ? scatteredOf(first, below.manifest.images[name].extents, parent.frames) : [];
    if (below && scattered.length > 0) {
      const whole = flatten([...below.sources, ...sources], sizeBytes);
      plans.push({ name, runs: restrictedTo(whole, scattered), parentRuns: undefined });
    }
    if (first.length > 0)
      plans.push({ name, runs: restrictedTo(excluding(runs, scattered), first), parentRuns });
    rest.push({ name, runs: excluding(runs, first), parentRuns });
  }
  return [...plans, ...rest];
}

/** A frame of the parent is fetched for its needed pages when they are at least this part of it. */
const worthFetching = 1 / 2;

/**
 * What is needed first and stands in the parent among much that is not: stored once more with the rest of what is needed
 * first. Some hundred KiB in the store, for hundreds of frames less that each restore on an empty node fetches and decodes.
 */
function scatteredOf(first: readonly Stretch[], extents: ExtentTable, frames: FrameTable): Stretch[] {
  const pieces: Piece[] = [];
  const needed = new Map<number, number>();
  for (const { offsetBytes, sizeBytes } of first)
    for (const piece of piecesOf(extents, offsetBytes / pageBytes, pagesIn(sizeBytes))) {
      if (piece.frame < 0) continue;
      pieces.push(piece);
      needed.set(piece.frame, (needed.get(piece.frame) ?? 0) + piece.pageCount);
    }
  return pieces
    .filter(({ frame }) => needed.get(frame)! < frames.pageCount[frame]! * worthFetching)
    .map(({ page, pageCount }) => ({ offsetBytes: page * pageBytes, sizeBytes: pageCount * pageBytes }));
}
