// Owns the words of the shared state: what the gateway keeps between runs and shares with other gateways.
// Refuses to own Redis (redis-state.ts). Invariant: reads come from memory and never wait; writes either
// reached the store or throw `state-unavailable`, and are visible to this gateway's reads when they return.
import type { ErrorCode } from '../../../shared/errors.ts';
import type { ResolvedManifest } from '../../../shared/function-manifest.ts';
import type { SandboxNetwork } from '../network-config.ts';
import type { FunctionVersion } from '../node-client.ts';
import type { TemplateRecord } from '../template-record.ts';
import type { VersionState } from '../version-state.ts';

export interface VersionRecord {
  name: string;
  version: number;
  state: VersionState;
  manifest: ResolvedManifest;
  /** null, and so the size: made from a snapshot. */
  bundleSha256: string | null;
  bundleSizeBytes: number | null;
  /** The snapshot it was made from; it need not exist any more. */
  fromSnapshot?: string;
  snapshotId: string | null;
  createdAt: string;
  finishedAt: string | null;
  error: { code: ErrorCode; detail: string; output: string } | null;
}

export interface FunctionView {
  name: string;
  createdAt: string;
  currentVersion: number | null;
  /** Newest first. */
  versions: VersionRecord[];
}

export type NewVersion = Pick<
  VersionRecord,
  'name' | 'manifest' | 'bundleSha256' | 'bundleSizeBytes' | 'fromSnapshot'
>;

export interface FunctionStore {
  /** The hot path: a ready version, the current one when none is named. */
  resolve(name: string, version?: number): FunctionVersion | undefined;
  get(name: string): FunctionView | undefined;
  list(): FunctionView[];
  /** Allocates a version number and takes the function's build lease. @throws ThawError `conflict` while another build runs. */
  beginVersion(version: NewVersion, leaseToken: string, leaseMs: number): Promise<VersionRecord>;
  /** @returns false when the lease was lost. */
  extendBuild(name: string, leaseToken: string, leaseMs: number): Promise<boolean>;
  /** Milliseconds until the build lease ends; 0 when nobody holds it. */
  buildLeaseMs(name: string): Promise<number>;
  /** Stores a finished version, frees the lease and, when it is ready, makes it current: together. @throws ThawError `conflict` when the lease was lost. */
  finishVersion(record: VersionRecord, leaseToken: string): Promise<void>;
  /** Stores a changed record of a version that exists. */
  putVersion(record: VersionRecord): Promise<void>;
  /** Makes another ready version current. */
  activate(name: string, version: number): Promise<void>;
  removeVersion(name: string, version: number): Promise<void>;
  /** @returns false when there was none. @throws ThawError `conflict` while a build runs. */
  remove(name: string): Promise<boolean>;
}

export interface SandboxRecord {
  sandboxId: string;
  templateId: string;
  alias: string | null;
  snapshotId: string;
  accessToken: string;
  metadata: Record<string, string>;
  /** `starting` is not shown to clients. */
  state: 'starting' | 'running' | 'paused';
  startedAtMs: number;
  endAtMs: number;
  cpuCount: number;
  memoryMb: number;
  diskSizeMb: number;
  /** What holds, where its node can give it. */
  allowInternetAccess: boolean;
  network?: SandboxNetwork;
  /** Present: its ports, but for the agent's, are served only to those who send it. */
  trafficAccessToken?: string;
  /** What its time's end does. */
  onTimeout?: 'kill' | 'pause';
  /** A request to a paused sandbox resumes it. */
  autoResume?: boolean;
  envVars?: Record<string, string>;
}

export interface SandboxStore {
  get(sandboxId: string): SandboxRecord | undefined;
  list(): SandboxRecord[];
  create(record: SandboxRecord): Promise<void>;
  /** Stores a changed record, its end included. @returns false when it has been removed meanwhile. */
  update(record: SandboxRecord): Promise<boolean>;
  /** @returns the end that now holds, or undefined when there is no such sandbox. `extend` never shortens. */
  setEnd(sandboxId: string, endAtMs: number, mode: 'set' | 'extend'): Promise<number | undefined>;
  /** Gone for this gateway at once; what Redis did not hear is repeated when it is back. */
  remove(sandboxId: string): Promise<void>;
}

export interface BuildLogLine {
  timestamp: string;
  level: 'info' | 'warn' | 'error';
  message: string;
  /** `base`, the step's number from 1, or `finalize`. */
  step: string;
}

/** From what is stored to what shall be: undefined removes it, `unchanged` leaves it. Called again when somebody else was faster. */
export type TemplateChange = (known: TemplateRecord | undefined) => TemplateRecord | undefined | 'unchanged';

export interface TemplateStore {
  get(nameOrId: string): TemplateRecord | undefined;
  /** Newest first. */
  list(): TemplateRecord[];
  /** @returns what holds now. @throws ThawError `state-unavailable`, and what `change` throws. */
  change(name: string, change: TemplateChange): Promise<TemplateRecord | undefined>;
  appendLog(buildId: string, lines: readonly BuildLogLine[]): Promise<void>;
  readLog(buildId: string, offset: number, limit: number): Promise<BuildLogLine[]>;
  forgetLog(buildId: string): Promise<void>;
  /** Says that somebody works on this build, for a while. */
  hold(buildId: string, leaseMs: number): Promise<void>;
  isHeld(buildId: string): Promise<boolean>;
}

export interface KeyStore {
  /** Admits an API key; only its SHA-256 is stored. Idempotent. */
  add(key: string): Promise<void>;
  remove(key: string): Promise<void>;
  /** Constant-time in the keys; from memory. */
  verify(key: string): boolean;
  readonly size: number;
}

export interface StateStore {
  readonly functions: FunctionStore;
  readonly sandboxes: SandboxStore;
  readonly templates: TemplateStore;
  readonly keys: KeyStore;
  /** False while Redis does not answer: reads are from memory, writes fail. */
  readonly connected: boolean;
  close(): Promise<void>;
}
