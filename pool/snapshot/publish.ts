// Owns publishing: a local capture becomes segments and then, last, a manifest in the store.
// Refuses to own the capture (capture.ts) and when to publish. Invariant: a crash at any point leaves a whole snapshot
// or garbage that gc.ts finds; the same content published twice uploads nothing the second time.
import type { Compatibility, PageDelta } from '../hypervisor/hypervisor.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Manifest } from './manifest.ts';

/** A run of an image that stands in a local file: `fileOffsetBytes` there is `offsetBytes` of the image. Whole pages. */
export interface SourceRun {
  offsetBytes: number;
  sizeBytes: number;
  /** -1: the run is zeros, whatever the parent has there. */
  fileOffsetBytes: number;
}

/** What an image of the capture holds, over its parent's (or over zeros, without a parent). Later sources win. */
export interface ImageSource {
  path: string;
  /** Ascending, not overlapping. */
  runs: readonly SourceRun[];
}

export interface ImageCapture {
  sizeBytes: number;
  sources: readonly ImageSource[];
  /**
   * The parent's whole image as a local file (page file, raw disk): pages equal to it are not stored again. Absent: every
   * page of `sources` counts as changed.
   */
  parentPath?: string;
}

/** What the capture of a VM left on this node, to be published. Files must not change until `publish` has settled. */
export interface LocalCapture {
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
  /** Pages by what became of them. */
  pages: { stored: number; zero: number; equalToParent: number };
}

export interface PublishOptions {
  signal?: AbortSignal;
  timeoutMs?: number;
  /** read, pin, upload, manifest, release: called as each ends. */
  onStage?: (stage: string, elapsedMs: number) => void;
}

export interface PublisherOptions {
  store: BlobStore;
  /** 32 bytes; every node of the cluster has the same. */
  clusterKey: Buffer;
  /** Directory for segments on their way; emptied at construction by `Publisher.open`. */
  spoolDir: string;
  /** Compression threads. */
  threads?: number;
  minFreeBytes?: number;
}

/** `const publisher = await Publisher.open(options)`; `await publisher.publish(capture)`; `await publisher.close()`. */
export declare class Publisher {
  static open(options: PublisherOptions): Promise<Publisher>;
  /** One at a time per snapshot: a second call for the same id gets the first one's result. @throws ThawError `conflict` | `no-space` | `store-unavailable` | … */
  publish(capture: LocalCapture, options?: PublishOptions): Promise<Published>;
  close(): Promise<void>;
}

/** `image-source.ts`: how local files become sources. */
export declare function deltaSource(delta: PageDelta): ImageSource;
/** The data of a sparse raw file, holes skipped. */
export declare function sparseFileSource(path: string): Promise<ImageSource>;
/** The clusters that a qcow2 layer itself holds, not those of its backing file. */
export declare function qcow2LayerSource(path: string): Promise<ImageSource>;
