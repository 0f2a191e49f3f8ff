// Owns what the control plane says of sandboxes and snapshots, and its form on the wire.
// Invariant: times are `Date`s, durations end in Ms, sizes in Mb or Bytes.

export type SandboxState = 'running' | 'paused';

export interface SandboxInfo {
  sandboxId: string;
  templateId: string;
  /** The template's name, when it has one. */
  alias: string | undefined;
  state: SandboxState;
  startedAt: Date;
  /** When it is killed, or paused, unless its time is extended. */
  endAt: Date;
  cpuCount: number;
  memoryMb: number;
  diskSizeMb: number;
  metadata: Record<string, string>;
}

export interface SnapshotInfo {
  snapshotId: string;
  names: string[];
}

/** One sample of what a sandbox uses. */
export interface SandboxMetrics {
  at: Date;
  cpuCount: number;
  /** Percent of one CPU; may exceed 100 with several. */
  cpuUsedPct: number;
  memUsedBytes: number;
  memTotalBytes: number;
  diskUsedBytes: number;
  diskTotalBytes: number;
}

/** Which traffic may leave and enter a sandbox. Addresses are IPs, CIDRs or domain names. */
export interface NetworkOptions {
  allowOut?: string[] | undefined;
  denyOut?: string[] | undefined;
  /** False: requests to the sandbox's ports need its `trafficAccessToken`. */
  allowPublicTraffic?: boolean | undefined;
  /** Host header that programs in the sandbox shall see; `${PORT}` stands for the port. */
  maskRequestHost?: string | undefined;
}

/** What create, connect and fork answer. */
export interface WireConnection {
  sandboxID: string;
  templateID: string;
  envdAccessToken?: string | null;
  trafficAccessToken?: string | null;
  domain?: string | null;
}

export interface WireSandbox {
  sandboxID: string;
  templateID: string;
  alias?: string;
  state: SandboxState;
  startedAt: string;
  endAt: string;
  cpuCount: number;
  memoryMB: number;
  diskSizeMB: number;
  metadata?: Record<string, string> | null;
}

export const sandboxInfoOf = (wire: WireSandbox): SandboxInfo => ({
  sandboxId: wire.sandboxID,
  templateId: wire.templateID,
  alias: wire.alias,
  state: wire.state,
  startedAt: new Date(wire.startedAt),
  endAt: new Date(wire.endAt),
  cpuCount: wire.cpuCount,
  memoryMb: wire.memoryMB,
  diskSizeMb: wire.diskSizeMB,
  metadata: wire.metadata ?? {},
});

export interface WireSnapshot {
  snapshotID: string;
  names?: string[];
}

export const snapshotInfoOf = (wire: WireSnapshot): SnapshotInfo => ({
  snapshotId: wire.snapshotID,
  names: wire.names ?? [],
});

export interface WireMetrics {
  timestampUnix: number;
  cpuCount: number;
  cpuUsedPct: number;
  memUsed: number;
  memTotal: number;
  diskUsed: number;
  diskTotal: number;
}

export const sandboxMetricsOf = (wire: WireMetrics): SandboxMetrics => ({
  at: new Date(wire.timestampUnix * 1_000),
  cpuCount: wire.cpuCount,
  cpuUsedPct: wire.cpuUsedPct,
  memUsedBytes: wire.memUsed,
  memTotalBytes: wire.memTotal,
  diskUsedBytes: wire.diskUsed,
  diskTotalBytes: wire.diskTotal,
});
