// Owns working sets: the pages that clones touch before their first answer, in order; recording, merging, stored form.
// Refuses to own fetching them (pool/pagefs). Invariant: a working set decides what is fetched early, never what is
// served: every page it names is still verified under the manifest, so it needs no signature of its own.
import { ThawError } from '../../shared/errors.ts';
import { pageBytes } from './extents.ts';

/** Pages that were touched one after the other. */
export interface TouchedRun {
  page: number;
  pageCount: number;
}

/** The first touches of one clone, in order, no page twice. */
export type Recording = readonly TouchedRun[];

export interface WorkingSet {
  imagePages: number;
  /** The latest few, oldest first. */
  recordings: readonly Recording[];
}

/** More add little and would let a busy template's set grow with age. */
const maxRecordings = 4;
const maxRuns = 1 << 20;
/** Of the image. A set of more is not much sooner here than everything. */
const maxLearntFraction = 0.25;

export class FirstTouches {
  readonly #seen: Uint8Array;
  readonly #runs: TouchedRun[] = [];

  constructor(imagePages: number) {
    this.#seen = new Uint8Array(imagePages);
  }

  touch(offsetBytes: number, sizeBytes: number): void {
    const end = Math.min(Math.ceil((offsetBytes + sizeBytes) / pageBytes), this.#seen.length);
    for (let page = Math.floor(offsetBytes / pageBytes); page < end; page++) {
      if (this.#seen[page] === 1) continue;
      this.#seen[page] = 1;
      append(this.#runs, page);
    }
  }

  recording(): Recording {
    return this.#runs.map((run) => ({ ...run }));
  }
}

function append(runs: TouchedRun[], page: number): void {
  const last = runs.at(-1);
  if (last && last.page + last.pageCount === page) last.pageCount++;
  else runs.push({ page, pageCount: 1 });
}

export const withRecording = (set: WorkingSet, recording: Recording): WorkingSet => ({
  imagePages: set.imagePages,
  recordings: [...set.recordings, recording].slice(-maxRecordings),
});

/**
 * With what a clone needed although the set was known: the next one elsewhere has it early.
 * @returns undefined when the set lacks nothing of it, or has grown too large to come early.
 */
export function withMisses(set: WorkingSet, misses: Recording): WorkingSet | undefined {
  const known = new Set(set.recordings.flatMap(pageNumbersOf));
  const lacked = new FirstTouches(set.imagePages);
  for (const page of pageNumbersOf(misses)) if (!known.has(page)) lacked.touch(page * pageBytes, pageBytes);
  const added = lacked.recording();
  if (added.length === 0 || known.size > maxLearntFraction * set.imagePages) return undefined;
  return {
    ...set,
    recordings: [...set.recordings.slice(0, -1), [...(set.recordings.at(-1) ?? []), ...added]],
  };
}

const pageNumbersOf = (runs: Recording): number[] =>
  runs.flatMap(({ page, pageCount }) => Array.from({ length: pageCount }, (_, index) => page + index));

/**
 * Every page that any recording touched: one that is missing costs a fault a trip to the store, one too many 4 KiB of a
 * large read. In the mean order of first touch, those last that only a minority touched.
 */
export function mergedOrder({ imagePages, recordings }: WorkingSet): TouchedRun[] {
  const counts = new Uint8Array(imagePages);
  const rankSums = new Float64Array(imagePages);
  for (const recording of recordings) {
    let rank = 0;
    for (const { page, pageCount } of recording)
      for (let at = page; at < page + pageCount; at++) {
        counts[at]!++;
        rankSums[at]! += rank++;
      }
  }
  const pages: number[] = [];
  for (let page = 0; page < imagePages; page++) if (counts[page]! > 0) pages.push(page);
  const isRare = (page: number) => (counts[page]! * 2 < recordings.length ? 1 : 0);
  const meanRank = (page: number) => rankSums[page]! / counts[page]!;
  pages.sort((a, b) => isRare(a) - isRare(b) || meanRank(a) - meanRank(b) || a - b);
  const runs: TouchedRun[] = [];
  for (const page of pages) append(runs, page);
  return runs;
}

export const pagesOf = (runs: readonly TouchedRun[]): number =>
  runs.reduce((sum, { pageCount }) => sum + pageCount, 0);

/** As few numbers as possible: first page and count, one after the other. */
export const flatRuns = (runs: readonly TouchedRun[]): number[] =>
  runs.flatMap(({ page, pageCount }) => [page, pageCount]);

export const runsOfFlat = (flat: readonly number[]): TouchedRun[] =>
  Array.from({ length: Math.floor(flat.length / 2) }, (_, index) => ({
    page: flat[index * 2]!,
    pageCount: flat[index * 2 + 1]!,
  }));

const format = 1;

export function encodeWorkingSet({ imagePages, recordings }: WorkingSet): Buffer {
  return Buffer.from(JSON.stringify({ format, imagePages, recordings: recordings.map(flatRuns) }));
}

/** @throws ThawError `snapshot-damaged` unless every run lies inside an image of `imagePages` pages. */
export function decodeWorkingSet(bytes: Buffer, imagePages: number): WorkingSet {
  try {
    const value = JSON.parse(bytes.toString('utf8')) as {
      format: unknown;
      imagePages: unknown;
      recordings: unknown;
    };
    if (value.format !== format || value.imagePages !== imagePages || !Array.isArray(value.recordings))
      throw new Error('not of this format or image');
    return {
      imagePages,
      recordings: value.recordings.slice(-maxRecordings).map((flat) => checkedRuns(flat, imagePages)),
    };
  } catch (error) {
    throw new ThawError('snapshot-damaged', `the working set is unusable: ${(error as Error).message}`);
  }
}

function checkedRuns(flat: unknown, imagePages: number): TouchedRun[] {
  if (!Array.isArray(flat) || flat.length % 2 !== 0 || flat.length > 2 * maxRuns || !flat.every(isCount))
    throw new Error('not a list of runs');
  const runs = runsOfFlat(flat);
  if (!runs.every(({ page, pageCount }) => pageCount > 0 && page + pageCount <= imagePages))
    throw new Error('a run outside the image');
  return runs;
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
