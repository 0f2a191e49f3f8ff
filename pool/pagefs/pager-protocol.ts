// Owns the words between a node and its pager: one JSON object a line on a unix socket, both ways.
// Refuses to own what they do. Invariant: every request has one reply with its number; events come in between.
import type { ErrorCode } from '../../shared/errors.ts';
import type { ImageName } from '../snapshot/manifest.ts';

export interface ImageRef {
  snapshotId: string;
  image: ImageName;
}

/**
 * `manifestPath`: assembled from verified frames. `plainPath`: a whole page file that is here, served to be recorded, so
 * that a publish can lay its working set out together; `far` as if its pages came from a store.
 */
export type ServeFrom = { manifestPath: string; keepPath?: string } | { plainPath: string; far?: boolean };

export interface PagerOperations {
  hello: { request: Record<never, never>; reply: { pid: number; mountDir: string } };
  /** The page file exists when this is answered. */
  add: {
    request: ImageRef & { from: ServeFrom; record?: boolean };
    reply: { path: string; sizeBytes: number };
  };
  /** Refused with `conflict` while a VMM has the file mapped. */
  remove: { request: ImageRef; reply: Record<never, never> };
  /** `pages`: first page and count, one after the other, in the order of need. Answered when all of it is here. */
  prefetch: { request: ImageRef & { pages: number[] }; reply: { frames: number; failed: number } };
  /** Fetches whatever the kept plain file lacks, after everything else. Answered at once; the event `kept` follows. */
  complete: { request: ImageRef; reply: { missingFrames: number } };
  /** First touches since `add`, as in `prefetch`. */
  recording: { request: ImageRef; reply: { pages: number[] } };
  stats: { request: Record<never, never>; reply: PagerStats };
  /** In the form of prom-client's `getMetricsAsJSON`. */
  metrics: { request: Record<never, never>; reply: { series: unknown[] } };
  /** Unmounts and ends. Refused with `conflict` while files are open. */
  stop: { request: Record<never, never>; reply: Record<never, never> };
}

export type PagerOperation = keyof PagerOperations;

export interface FileStats extends ImageRef {
  sizeBytes: number;
  /** Open or mapped so many times. */
  opens: number;
  reads: number;
  readBytes: number;
  /** Of the kept plain file. */
  missingFrames: number;
}

export interface PagerStats {
  files: FileStats[];
  cacheBytes: number;
  fetchesInFlight: number;
  fetchesWaiting: number;
  quarantinedFrames: number;
  residentBytes: number;
}

export type PagerEvent =
  /** A read was answered with an error: whoever maps the file is about to die of it, and this says why. */
  | (ImageRef & { event: 'pages-failed'; code: ErrorCode; detail: string })
  | (ImageRef & { event: 'frame-quarantined'; frame: number; detail: string })
  /** The plain file is whole and verified: the next clone maps it. */
  | (ImageRef & { event: 'kept'; path: string })
  /** It cannot be kept (a full disk, a store that fails); pages are served all the same. */
  | (ImageRef & { event: 'keep-failed'; detail: string })
  /** Something tried to write into a page file. */
  | (ImageRef & { event: 'write-refused'; pid: number });

export type PagerRequest = { id: number; op: PagerOperation } & Record<string, unknown>;
export type PagerReply = { id: number } & ({ ok: unknown } | { error: { code: ErrorCode; detail: string } });
export type PagerMessage = PagerReply | PagerEvent;

/** A recording of a large guest is the longest. */
export const maxLineBytes = 64 * 1024 * 1024;
