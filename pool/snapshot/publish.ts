// Owns publishing: a local capture becomes segments and then, last, a manifest in the store.
// Refuses to own the capture (capture.ts) and when to publish. Invariant: a crash at any point leaves a whole snapshot
// or garbage that gc.ts finds; the same content published twice uploads nothing the second time.
import { mkdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Cleanup } from '../../shared/cleanup.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Compatibility } from '../hypervisor/hypervisor.ts';
import type { BlobStore } from '../store/blob-store.ts';
import { RequestEnd } from '../store/request.ts';
import { assemble, ImageChanges, NewFrames, type PageCounts } from './assemble.ts';
import { Catalogue } from './catalogue.ts';
import { Compressor } from './compress.ts';
import type { ImageSource } from './image-source.ts';
import { type ImageName, type Manifest, type SnapshotTitle, storedBytesOf } from './manifest.ts';
import { encodeManifest } from './manifest-codec.ts';
import { Pins } from './pins.ts';
import { plansOf } from './publish-plan.ts';
import { totalBytes } from './run-table.ts';
import type { ClusterKey } from './signed-object.ts';
import { checkSpace, Spool, type SpooledSegment } from './spool.ts';
import { manifestKey } from './store-keys.ts';
import { checkSegments, uploadSegments } from './upload.ts';

export interface ImageCapture {
  sizeBytes: number;
  /** What the capture holds, over the parent's image (over zeros, without a parent). Later sources win. */
  sources: readonly ImageSource[];
  /**
   * The parent's whole image in local files: pages equal to it are not stored again. Absent: every page of `sources`
   * counts as changed. Only with a `parentId`.
   */
  parent?: readonly ImageSource[];
  /** Parts to lay out first and together, ascending: what clones are known to need first. */
  first?: readonly { offsetBytes: number; sizeBytes: number }[];
}

/** What the capture of a VM left on this node, to be published. Files must not change until `publish` has settled. */
export interface LocalCapture extends SnapshotTitle {
  snapshotId: string;
  /** Must be in the store already. Absent: images start as zeros. */
  parentId?: string;
  createdAtMs: number;
  nonce: string;
  memoryMb: number;
  vcpus: number;
  prime?: string[];
  compatibility: Compatibility;
  memory: ImageCapture;
  disk: ImageCapture;
  devicesPath: string;
  facts?: Record<string, number>;
}

export interface Published {
  manifest: Manifest;
  /** Bytes that went to the store, manifest included; 0 when all of it was there. */
  uploadedBytes: number;
  /** Pages by what became of them, all images together. */
  pages: PageCounts;
}

export type PublishStage = 'read' | 'pin' | 'upload' | 'manifest' | 'release';

export interface PublishOptions {
  signal?: AbortSignal;
  timeoutMs?: number;
  /** Called as each stage ends. */
  onStage?: (stage: PublishStage, elapsedMs: number) => void;
}

export interface PublisherOptions {
  store: BlobStore;
  clusterKey: ClusterKey;
  /** Segments on their way; what a crash left there is removed when the publisher opens. */
  spoolDir: string;
  /** Compression threads; one less than the CPUs when absent. */
  threads?: number;
  /** Free space in `spoolDir` that a publish must leave. */
  reserveBytes?: number;
}

const defaultTimeoutMs = 900_000;
/** Longer than a publish may take, so that its pin never runs out under it. */
const pinMarginMs = 60_000;
/** A collection under way ends within 3 minutes, also when its collector has died. */
const collectionTimeoutMs = 240_000;
const defaultReserveBytes = 256 * 1024 * 1024;

export class Publisher {
  readonly #options: Required<Omit<PublisherOptions, 'threads'>>;
  readonly #compressor: Compressor;
  readonly #catalogue: Catalogue;
  readonly #pins: Pins;
  readonly #underWay = new Map<string, Promise<Published>>();

  private constructor(options: PublisherOptions) {
    this.#options = { reserveBytes: defaultReserveBytes, ...options };
    this.#compressor = new Compressor(options.threads);
    this.#catalogue = new Catalogue(options);
    this.#pins = new Pins(options);
  }

  static async open(options: PublisherOptions): Promise<Publisher> {
    await rm(options.spoolDir, { recursive: true, force: true });
    await mkdir(options.spoolDir, { recursive: true, mode: 0o700 });
    return new Publisher(options);
  }

  /**
   * One at a time per snapshot: a second call for the same id gets the first one's result.
   * @throws ThawError `conflict` (the id is taken by another content), `template-not-found` (the parent is not in the
   * store), `snapshot-damaged`, `no-space`, `store-unavailable`, `store-refused`, `deadline-exceeded`.
   */
  publish(capture: LocalCapture, options: PublishOptions = {}): Promise<Published> {
    const running = this.#underWay.get(capture.snapshotId);
    if (running) return running;
    const publishing = this.#untilItsEnd(capture, options).finally(() =>
      this.#underWay.delete(capture.snapshotId),
    );
    this.#underWay.set(capture.snapshotId, publishing);
    return publishing;
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#underWay.values());
    await this.#compressor.close();
  }

  /** Settles only when nothing reads the capture's files any more, also when the caller gave up. */
  async #untilItsEnd(capture: LocalCapture, options: PublishOptions): Promise<Published> {
    const { timeoutMs = defaultTimeoutMs } = options;
    const end = new RequestEnd(`publishing ${capture.snapshotId}`, { ...options, timeoutMs });
    try {
      end.throwIfEnded();
      return await this.#publish(capture, { ...options, signal: end.signal, timeoutMs });
    } catch (error) {
      throw end.signal.aborted ? end.signal.reason : error;
    } finally {
      end.release();
    }
  }

  async #publish(
    capture: LocalCapture,
    options: PublishOptions & { signal: AbortSignal; timeoutMs: number },
  ): Promise<Published> {
    const { signal, onStage = () => {} } = options;
    const { store, clusterKey } = this.#options;
    const there = await this.#alreadyThere(capture, signal);
    if (there) return { manifest: there, uploadedBytes: 0, pages: { stored: 0, zero: 0, equalToParent: 0 } };
    let startMs = performance.now();
    const stage = (name: PublishStage) => {
      onStage(name, performance.now() - startMs);
      startMs = performance.now();
    };
    await using undo = new Cleanup();
    const parent =
      capture.parentId === undefined ? undefined : await this.#catalogue.load(capture.parentId, { signal });
    const { manifest, spooled, pages } = await this.#read(capture, parent, undo, signal);
    const object = encodeManifest(manifest, clusterKey);
    stage('read');
    const pin = await this.#pins.take(
      `publish-${capture.snapshotId}`,
      manifest.segments.map(({ sha256 }) => sha256),
      options.timeoutMs + pinMarginMs,
      { signal, timeoutMs: collectionTimeoutMs },
    );
    // Not under the signal, which may be what ended the publish.
    undo.defer('pin', () => pin.release());
    stage('pin');
    await checkSegments(store, parent ? notIn(manifest, spooled) : [], { signal });
    let uploadedBytes = await uploadSegments(store, spooled, { signal });
    stage('upload');
    signal.throwIfAborted();
    const outcome = await store.put(manifestKey(capture.snapshotId), object, { signal });
    if (outcome === 'created') uploadedBytes += object.length;
    else await this.#alreadyThere(capture, signal);
    stage('manifest');
    await undo.run();
    stage('release');
    return { manifest, uploadedBytes, pages };
  }

  /** @throws ThawError `conflict` when another content has this id. */
  async #alreadyThere(capture: LocalCapture, signal: AbortSignal): Promise<Manifest | undefined> {
    const { snapshotId } = capture;
    const manifest = await this.#catalogue.find(snapshotId, { signal });
    if (!manifest) return undefined;
    if (manifest.nonce === capture.nonce && manifest.parentId === capture.parentId) return manifest;
    throw new ThawError('conflict', `${snapshotId} is in the store already, with another content`);
  }

  async #read(
    capture: LocalCapture,
    parent: Manifest | undefined,
    undo: Cleanup,
    signal: AbortSignal,
  ): Promise<{ manifest: Manifest; spooled: SpooledSegment[]; pages: PageCounts }> {
    const { spoolDir, reserveBytes } = this.#options;
    const plans = await plansOf(capture, parent);
    const neededBytes = plans.reduce((sum, plan) => sum + totalBytes(plan.runs), 0);
    await checkSpace(spoolDir, neededBytes, reserveBytes);
    const spool = await Spool.create(join(spoolDir, capture.snapshotId));
    undo.defer('spool', () => spool.remove());
    const frames = new NewFrames();
    const changes = {} as Record<ImageName, ImageChanges>;
    for (const { name, runs, parentRuns } of plans) {
      changes[name] ??= new ImageChanges();
      for await (const piece of this.#compressor.compress(runs, parentRuns, signal)) {
        changes[name].add(piece, frames.count);
        frames.add(piece, spool.next);
        await spool.append(piece.stored);
      }
    }
    const spooled = await spool.end();
    const sizes = {
      memory: capture.memory.sizeBytes,
      disk: capture.disk.sizeBytes,
      devices: (await stat(capture.devicesPath)).size,
    };
    const tables = assemble(parent, sizes, changes, frames.table(), spooled);
    const manifest: Manifest = {
      ...describe(capture, parent),
      ...tables,
      addedBytes: storedBytesOf(spooled),
    };
    return { manifest, spooled, pages: summed(Object.values(changes)) };
  }
}

function describe(
  capture: LocalCapture,
  parent: Manifest | undefined,
): Omit<Manifest, 'images' | 'frames' | 'segments' | 'addedBytes'> {
  const { snapshotId, parentId, createdAtMs, nonce, memoryMb, vcpus, prime, compatibility, facts } = capture;
  const { kind, names, source } = capture;
  return {
    snapshotId,
    parentId,
    kind,
    names,
    source,
    depth: parent ? parent.depth + 1 : 0,
    createdAtMs,
    nonce,
    memoryMb,
    vcpus,
    prime,
    compatibility,
    facts: facts ?? {},
  };
}

const notIn = ({ segments }: Manifest, spooled: readonly SpooledSegment[]) => {
  const own = new Set(spooled.map(({ sha256 }) => sha256));
  return segments.filter(({ sha256 }) => !own.has(sha256));
};

function summed(changes: readonly ImageChanges[]): PageCounts {
  const sum = { stored: 0, zero: 0, equalToParent: 0 };
  for (const { pages } of changes) {
    sum.stored += pages.stored;
    sum.zero += pages.zero;
    sum.equalToParent += pages.equalToParent;
  }
  return sum;
}
