// Owns the hypervisor port: what a VMM driver offers to the rest of the pool.
// Refuses to own policy (when to restore, how many) and the guest's words (pool/guest).
// Invariant: an adapter passes `conformance.ts`; what it cannot do its Capabilities say.
import type { Duplex } from 'node:stream';
import type { EgressAbility, EgressRules } from '../../shared/egress.ts';

export interface Capabilities {
  /** Clones of one page file share its pages; a restore costs no copy of memory. */
  copyOnWriteMemory: boolean;
  /** Guest code cannot reach the host. False only for `process`. */
  isolated: boolean;
  /** A capture holds running processes: clones go on where the captured VM stood. */
  capturesMemory: boolean;
  /** Guest code runs on the CPU itself (KVM), not under emulation. */
  hardwareVirtualisation: boolean;
  /** What a guest may open connections to outside, and whether that can be held to rules. */
  egress: EgressAbility;
  maxVcpus: number;
}

/** What one `images/` build made; every path is named by content and never changes. */
export interface GuestImage {
  /** SHA-256 over all inputs; names the image. */
  digest: string;
  kernelPath: string;
  /** The same kernel unpacked, an ELF file with a PVH entry. */
  vmlinuxPath: string;
  initrdPath: string;
  rootPath: string;
  /** Sparse, formatted, empty writable disk. */
  blankDiskPath: string;
}

/** Decides which snapshots fit: equal keys may be restored by each other. */
export interface Compatibility {
  hypervisor: string;
  hypervisorVersion: string;
  machine: string;
  cpu: string;
  imageDigest: string;
}

export interface MachineShape {
  memoryMb: number;
  vcpus: number;
}

/** The files of a captured VM. All live in one directory; `pages` is of the guest's size and never changes. */
export interface CapturedFiles {
  pagesPath: string;
  devicesPath: string;
  diskPath: string;
}

/** A run of guest pages: where it stands in the page file. In a delta file the runs' bytes follow each other in order. */
export interface PageRun {
  offsetBytes: number;
  sizeBytes: number;
}

/** What a clone had changed when it was captured: `path` holds the bytes of `runs`, one after the other. */
export interface PageDelta {
  path: string;
  /** Ascending, not overlapping, whole pages. */
  runs: readonly PageRun[];
}

/** Where a capture of a running clone writes. All absent before; whole when the capture returns. */
export interface CloneCaptureTarget {
  deltaPath: string;
  devicesPath: string;
  /** The clone's own writable layer, frozen at the same instant; its backing files are those of the clone's snapshot. */
  diskPath: string;
}

export interface CloneCaptureOptions {
  /** False: the machine stays paused and is then destroyed (a sandbox that is paused, a depth of work that ends). */
  resume: boolean;
  /** Awaited when all is prepared, right before the pause: tells the guest. When it fails, so does the capture. */
  beforePause?: () => Promise<void>;
  /** Stages: pause, state, scan, copy, disk, resume; what follows the resume (write-out) is `write`. */
  onStage?: (stage: string, elapsedMs: number) => void;
}

export interface BootRequest {
  vmId: string;
  shape: MachineShape;
  image: GuestImage;
  /** Directory of this VM's sockets, logs and disk; exists and is empty. */
  runDir: string;
  /** Absent file that becomes the guest's memory, mapped shared: capture copies nothing. */
  pagesPath: string;
}

export interface RestoreRequest {
  vmId: string;
  shape: MachineShape;
  image: GuestImage;
  runDir: string;
  from: CapturedFiles;
  /** Written over the private mapping before the guest runs: a snapshot whose own page file is not made yet. */
  delta?: PageDelta;
  /**
   * `private`: a clone, guest writes stay in the VMM. `shared`: `from.pagesPath` is a file of this VM alone and guest
   * writes go into it, so that a later capture copies nothing (how a function version is built from a template).
   */
  memory: 'private' | 'shared';
  /** True for a VM that may be given a way out (`setEgress`), where that is something to prepare. */
  mayReachOut?: boolean;
  /** Called as each stage ends, with its duration. Stages: disk, spawn, delta (where there is one), load, resume. */
  onStage?: (stage: string, elapsedMs: number) => void;
}

export interface MachineExit {
  exitCode: number | null;
  signal: string | null;
  /** The end of the VMM's standard error, for the error that reports it. */
  stderrTail: string;
}

export interface Address {
  host: string;
  port: number;
}

/** One VMM process. Running when handed out. */
export interface Machine {
  readonly vmId: string;
  readonly pid: number;
  /** Settles once, when the VMM process has ended for whatever reason; never rejects. */
  readonly exited: Promise<MachineExit>;
  /** The control channel to the guest agent; one at a time. */
  openControl(): Promise<Duplex>;
  /** Its VM is ready for use: what the driver does ahead of the next restore may take CPU now. Absent: it puts nothing off. */
  answered?(): void;
  /** A host address whose connections reach `guestPort` inside. Repeated calls give the same one. */
  addressOf(guestPort: number): Promise<Address>;
  /** Present where the hypervisor's `egress` is `by-address`; a new machine is closed. Ends open connections that it closes. */
  setEgress?(rules: EgressRules): Promise<void>;
  /**
   * Pauses and writes the device state and disk beside the page file. Only for a machine with shared memory
   * (booted, or restored `shared`): its page file is then the snapshot's. The machine must be destroyed afterwards.
   */
  captureInPlace(
    target: Omit<CapturedFiles, 'pagesPath'>,
    onStage?: (stage: string, elapsedMs: number) => void,
  ): Promise<void>;
  /**
   * Saves a running clone (memory `private`): device state, the pages it changed since its page file, its disk, all of
   * one instant; the pause lasts from `pause` to `resume`. A failure resumes the clone and leaves no file.
   * @throws ThawError `hypervisor-failed` | `no-space` | `deadline-exceeded`, and `conflict` while it is being captured.
   */
  captureClone(target: CloneCaptureTarget, options: CloneCaptureOptions): Promise<PageDelta>;
  /** Lets a clone run on that `captureClone` left paused: what followed the capture failed. */
  resume(): Promise<void>;
  /** Ends the VMM; safe in every state and more than once. Resolves when the process is gone. */
  destroy(): Promise<void>;
}

export interface Hypervisor {
  readonly name: 'qemu' | 'process' | 'cloud-hypervisor';
  readonly capabilities: Capabilities;
  /** @throws ThawError `missing-package` naming what to install. */
  compatibility(image: GuestImage): Promise<Compatibility>;
  boot(request: BootRequest, signal?: AbortSignal): Promise<Machine>;
  restore(request: RestoreRequest, signal?: AbortSignal): Promise<Machine>;
}
