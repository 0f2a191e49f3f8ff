// Owns what the pool knows of one VM that can serve. Made by a VmFactory; the pool decides its fate.
import type { Dispatcher } from 'undici';
import type { ControlEvent } from '../shared/agent-protocol.ts';
import type { EgressRules } from '../shared/egress.ts';
import type { ResolvedManifest } from '../shared/function-manifest.ts';
import type { Address, MachineShape } from './hypervisor/hypervisor.ts';
import type { CaptureRequest } from './snapshot/capture.ts';
import type { SnapshotRecord } from './snapshot/record.ts';

/** How a lease got its VM, from the design's words. */
export type Tier = 'warm' | 'local' | 'remote' | 'boot';

/** A restored clone: its agent answered, was reseeded, proved its snapshot, and its prime paths were called once. */
export interface Vm {
  readonly vmId: string;
  readonly snapshotId: string;
  readonly pid: number;
  /** Where its memory came from when it was restored. */
  readonly source: 'local' | 'remote';
  readonly memoryMb: number;
  /** Authorises `/_thaw/*` on this VM. */
  readonly secret: string;
  readonly agent: Address;
  /** Absent for VMs without a function runner (sandboxes). */
  readonly runner: Address | undefined;
  /** Open connections to the runner: the ones that primed it serve its first request. Closed with the VM. */
  readonly runnerConnections?: Dispatcher | undefined;
  readonly runnerOrigin?: string | undefined;
  /** Settles with the reason when the VM can serve no longer: VMM exit or a runner that ended. Never rejects. */
  readonly ended: Promise<string>;
  addressOf(guestPort: number): Promise<Address>;
  /** Absent where its hypervisor has no rules to keep: see Capabilities.egress. */
  readonly setEgress?: ((rules: EgressRules) => Promise<void>) | undefined;
  onEvent(listener: (event: ControlEvent) => void): void;
  /**
   * Saves it as it is now, as a snapshot of this node that VMs can be restored from when this returns. It runs on after
   * a short pause; with `resume: false` it stays paused and is to be destroyed. Whatever fails, it runs on.
   * @throws ThawError `conflict` | `no-space` | `not-implemented` and what captureVm names.
   */
  capture(request: CaptureRequest): Promise<SnapshotRecord>;
  destroy(): Promise<void>;
}

/** Makes VMs; the pool's only way to get one. Implementations: vm-factory.ts, and a simulated one in tests. */
export interface VmFactory {
  /** @throws ThawError `restore-failed` | `template-not-found` | `incompatible`. */
  restore(snapshotId: string, signal: AbortSignal): Promise<Vm>;
  /** What one VM of this snapshot counts against capacity. */
  memoryMbOf(snapshotId: string): number;
}

/** Makes snapshots out of templates and bundles; implemented by snapshot-builder.ts, simulated in tests. */
export interface SnapshotBuilder {
  /** The `base` template of this shape: booted once, then found by content. @returns its snapshot id. */
  ensureTemplate(shape: MachineShape, onProgress?: (step: string) => void): Promise<string>;
  /** Clone of the template + bundle + build + runner + prime, captured. @throws ThawError `build-failed` | `start-failed`. */
  buildFunction(request: FunctionBuildRequest, signal: AbortSignal): Promise<string>;
  /** True when the snapshot's files are here and this hypervisor may restore them. */
  has(snapshotId: string): Promise<boolean>;
  /** Deletes its files; running clones keep theirs open. */
  remove(snapshotId: string): Promise<void>;
}

export interface FunctionBuildRequest {
  manifest: ResolvedManifest;
  bundlePath: string;
  bundleSha256: string;
  onOutput?: (text: string) => void;
}
