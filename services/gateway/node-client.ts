// Owns the one interface through which the gateway reaches a node: in-process today, HTTP for a cluster.
// Refuses to own placement. Invariant: nothing here names a VM, a socket or a file of the node.
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import type { Duplex, Readable } from 'node:stream';
import type { LogEvent, SandboxInit } from '../../shared/agent-protocol.ts';
import type { EgressRules } from '../../shared/egress.ts';
import type { ResolvedManifest } from '../../shared/function-manifest.ts';

/** How a request got its VM (see pool/vm.ts). */
export type Tier = 'warm' | 'local' | 'remote' | 'boot';

/** A deployed, servable version, as the gateway knows it from the state store. */
export interface FunctionVersion {
  name: string;
  version: number;
  snapshotId: string;
  manifest: ResolvedManifest;
  /** null: made from a snapshot; it cannot be built again. */
  bundleSha256: string | null;
  createdAt: string;
}

export interface DeployRequest {
  name: string;
  version: number;
  manifest: ResolvedManifest;
  /** Path of a plain tar that has passed the bundle checks. */
  bundlePath: string;
  bundleSha256: string;
  onOutput?: (text: string) => void;
  /** Aborts when nobody waits for the result any more: time-out, lost build lease. */
  signal?: AbortSignal;
}

export interface EndpointRequest extends Pick<DeployRequest, 'name' | 'version' | 'onOutput' | 'signal'> {
  /** With the port where the server answers; with a command, that starts it. */
  manifest: ResolvedManifest & { port: number };
  /** By id or name: what the version's own snapshot is made from. */
  fromSnapshot: string;
}

export interface GuestRequest {
  method: string;
  /** Path with query, as the guest shall see it. */
  path: string;
  headers: IncomingHttpHeaders;
  body: Readable | null;
  /** Aborts when the client is gone. */
  signal: AbortSignal;
  /** Milliseconds from the call until response headers must have come. */
  timeoutMs: number;
}

export interface GuestResponse {
  status: number;
  headers: Record<string, string | string[]>;
  body: Readable;
  tier: Tier;
  /** Milliseconds: waiting for a VM (`queue` when none was free, else `lease`), and dispatch → response headers. */
  stages: { queueMs: number; leaseMs: number; execMs: number };
}

export interface SandboxRequest {
  sandboxId: string;
  snapshotId: string;
  accessToken: string;
  envVars: Record<string, string>;
  /** Epoch milliseconds at which the node kills it unless told otherwise. */
  endAtMs: number;
  /** True: at its end the node asks (`onSandboxExpired`) instead of killing it. */
  asksAtEnd?: boolean;
  /** What it may reach outside; absent: the internet, as far as this node's VMs do. */
  egress?: EgressRules;
  /** Its ports that speak TLS; their certificates are not checked. */
  httpsPorts?: readonly number[];
}

export interface SandboxSize {
  cpuCount: number;
  memoryMb: number;
  diskSizeMb: number;
}

export interface SandboxFacts extends SandboxSize {
  /** Whether the internet at large is open to it: rules may close it, and some nodes have none to give. */
  reachesInternet: boolean;
}

export interface SnapshotFacts {
  snapshotId: string;
  names: string[];
  kind: 'template' | 'function' | 'sandbox';
  /** The sandbox it was taken of. */
  sandboxId: string | null;
  parent: string | null;
  children: string[];
  /** VMs that were restored from it and run. */
  clones: number;
  memoryMb: number;
  vcpus: number;
  /** Guest memory that it stands for. */
  sizeBytes: number;
  /** Room that it takes beyond what it shares with its base; of one that is only in the store: what nobody else needs there. */
  uniqueBytes: number;
  /** False: it is in the store only, and comes when it is needed. */
  here: boolean;
  /** `waiting`: on its way to the store. `refused`: it cannot go there; the log says why. `no`: no store is configured. */
  stored: 'yes' | 'waiting' | 'refused' | 'no';
  /** Of one that is in the store: all that it needs there, shared or not. */
  storedBytes: number | null;
  dirtyPages: number | null;
  /** How long its sandbox stood still, by stage and in all (`total`). */
  pauseMs: Record<string, number>;
  compatibility: Record<string, string>;
  createdAt: string;
  /** Only when it is inspected, and in the store: pages that clones touch before their first answer, and of how many it was learnt. */
  workingSet?: { pages: number; clones: number } | null;
}

/** What was looked at of one copy of a snapshot, and what of it is not as it should be. */
export interface VerifiedCopy {
  /** `local`: the files of this node: there, of the right size and form, readable. `store`: every frame, by its checksum. */
  copy: 'local' | 'store';
  units: 'files' | 'frames';
  checked: number;
  /** That were read. */
  bytes: number;
  damaged: { what: string; reason: string }[];
}

export interface SnapshotVerification {
  snapshotId: string;
  copies: VerifiedCopy[];
}

export interface CaptureSandboxRequest {
  names: string[];
  /** False: the sandbox stays paused and its VM ends (its record is the caller's). */
  keepRunning: boolean;
}

export interface NodeClient {
  /**
   * Makes a version known and keeps its warm target; idempotent. Rebuilds its snapshot from the bundle when it is missing
   * or incompatible. @throws ThawError `template-not-found` | `incompatible` when there is no bundle.
   */
  serve(version: FunctionVersion): Promise<{ snapshotId: string }>;
  /** Builds the snapshot of a new version; does not serve it yet. @throws ThawError `build-failed` | `start-failed`. */
  deploy(request: DeployRequest): Promise<{ snapshotId: string }>;
  /**
   * Makes the snapshot of a new version from another snapshot in which its server runs or can be started; the other one
   * may be removed afterwards. @throws ThawError `template-not-found` | `start-failed` naming the port.
   */
  deployFromSnapshot(request: EndpointRequest): Promise<{ snapshotId: string }>;
  /** Stops serving a version and deletes its snapshot. */
  retire(version: FunctionVersion): Promise<void>;
  invoke(version: FunctionVersion, request: GuestRequest): Promise<GuestResponse>;
  /** WebSocket and other upgrades: the node answers on `socket` itself and owns it from here. */
  upgrade(
    version: FunctionVersion,
    request: IncomingMessage,
    path: string,
    socket: Duplex,
    head: Buffer,
  ): Promise<void>;
  /** The last lines, then new ones until the signal aborts. */
  logs(name: string, signal: AbortSignal): AsyncIterable<LogEvent>;
  /** Resolves a template name or snapshot id. @throws ThawError `template-not-found`. */
  resolveTemplate(templateId: string): Promise<{ snapshotId: string; alias: string | null }>;
  /** The `base` template in another size; it is made when there is none yet, which takes as long as a boot. */
  baseOfSize(shape: { memoryMb?: number; cpuCount?: number }): Promise<{ snapshotId: string }>;
  /** @throws ThawError `not-implemented` for egress rules that this node cannot keep. */
  createSandbox(request: SandboxRequest): Promise<SandboxFacts>;
  /** Replaces the rules of a running one; connections that they close end. @throws ThawError `sandbox-not-found` | `not-implemented`. */
  setSandboxEgress(sandboxId: string, rules: EgressRules): Promise<Pick<SandboxFacts, 'reachesInternet'>>;
  /** What programs and calls start with from now on: in this sandbox, and in clones of it that are not told otherwise. @throws ThawError `sandbox-not-found`. */
  setUpSandbox(sandboxId: string, init: SandboxInit): Promise<void>;
  /** @returns false when no such sandbox runs here. */
  killSandbox(sandboxId: string): Promise<boolean>;
  setSandboxEnd(sandboxId: string, endAtMs: number): void;
  /** Called when a sandbox ended for any reason but `killSandbox`. */
  onSandboxEnded(listener: (sandboxId: string, reason: string) => void): void;
  /** Called when the time of a sandbox that asks is over; it runs on until it is paused or killed. */
  onSandboxExpired(listener: (sandboxId: string) => void): void;
  /** What its programs wrote lately, oldest first; absent where nobody listens. */
  sandboxLog?(sandboxId: string): readonly LogEvent[];
  /** @throws ThawError `sandbox-not-found` | `conflict` | `no-space` | `hypervisor-failed`. */
  captureSandbox(sandboxId: string, request: CaptureSandboxRequest): Promise<SnapshotFacts>;
  /** Newest first. */
  listSnapshots(): Promise<SnapshotFacts[]>;
  /** By id or name. @throws ThawError `template-not-found`. */
  inspectSnapshot(idOrName: string): Promise<SnapshotFacts>;
  /** By id or name: reads all of it and changes nothing. @throws ThawError `template-not-found`. */
  verifySnapshot(idOrName: string): Promise<SnapshotVerification>;
  /** By id or name. Clones and children keep what they need. @throws ThawError `template-not-found` | `conflict` for what a function or template needs. */
  removeSnapshot(idOrName: string): Promise<void>;
  /** Streams a request to a port of the sandbox. @throws ThawError `sandbox-not-found` | `guest-unreachable`. */
  sandboxRequest(sandboxId: string, guestPort: number, request: GuestRequest): Promise<GuestResponse>;
  sandboxUpgrade(
    sandboxId: string,
    guestPort: number,
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
  ): Promise<void>;
  /** VMs of each served version by state, keyed NAME@VERSION; absent where it is not known cheaply. */
  pools?(): Record<string, Record<string, number>>;
  /** For /readyz and `thaw doctor`. */
  health(): Promise<{ ready: boolean; hypervisor: string; vms: Record<string, number>; notes: string[] }>;
  drain(timeoutMs: number): Promise<void>;
}
