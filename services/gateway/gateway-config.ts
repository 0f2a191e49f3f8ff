// Owns the gateway's settings and their defaults. Invariant: every limit the gateway enforces is a field here.

export interface GatewayConfig {
  /** Where checked bundles are kept, named by SHA-256: DIR/HASH.tar. */
  bundleDir: string;
  /** Largest upload as sent. */
  maxBundleBytes: number;
  /** Largest upload when unpacked. */
  maxBundleUnpackedBytes: number;
  maxBundleEntries: number;
  /** A build that takes longer fails. */
  buildTimeoutMs: number;
  /** Builds at once through this gateway; each holds a VM. */
  maxBuilds: number;
  /** As `buildTimeoutMs`, for a template: packages are installed while it runs. */
  templateBuildTimeoutMs: number;
  /** How long a template's start command may take until its check holds. */
  templateReadyTimeoutMs: number;
  /** What uploads for templates may take on the disk together; the oldest go first. */
  maxTemplateFilesBytes: number;
  /** Versions of a function that stay servable, the current one included. */
  keepVersions: number;
  /** Requests in work at once; above, callers get `overloaded`. */
  maxInFlight: number;
  /** Longest life a client may ask for, seconds. */
  maxSandboxTimeoutSeconds: number;
  /** Below it every sandbox has a host name for each port; may end in :PORT. Null: clients use an address and headers. */
  domain: string | null;
  /** How long a sandbox's own server may take until response headers. */
  sandboxResponseTimeoutMs: number;
  /** A connection without a byte in either direction for this long is closed. */
  idleTimeoutMs: number;
  /** How long `close` waits for requests in work before their connections are cut. */
  drainTimeoutMs: number;
  /** True behind a proxy of your own: incoming X-Forwarded-* are extended instead of replaced. */
  trustForwarded: boolean;
}

export type GatewayOptionsConfig = Pick<GatewayConfig, 'bundleDir'> & Partial<GatewayConfig>;

export const gatewayDefaults: Omit<GatewayConfig, 'bundleDir'> = {
  maxBundleBytes: 256 * 1024 * 1024,
  maxBundleUnpackedBytes: 1024 * 1024 * 1024,
  maxBundleEntries: 50_000,
  buildTimeoutMs: 600_000,
  templateBuildTimeoutMs: 1_800_000,
  templateReadyTimeoutMs: 300_000,
  maxTemplateFilesBytes: 4 * 1024 * 1024 * 1024,
  maxBuilds: 8,
  keepVersions: 2,
  maxInFlight: 4_096,
  maxSandboxTimeoutSeconds: 86_400,
  domain: null,
  // Above the ten minutes that load balancers commonly wait, so that it is not this hop that gives up first.
  sandboxResponseTimeoutMs: 610_000,
  idleTimeoutMs: 620_000,
  drainTimeoutMs: 10_000,
  trustForwarded: false,
};

export const resolveGatewayConfig = (config: GatewayOptionsConfig): GatewayConfig => ({
  ...gatewayDefaults,
  ...config,
});
