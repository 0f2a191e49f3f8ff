// Owns the words between the host and the guest agent: the control channel and the internal HTTP routes.
// Refuses to own envd's public routes (their contract is E2B's).
// Invariant: a field added here is read and written by both sides; the agent is built into the image, so
// a change of this file changes the image's digest and with it every template.

/** Port of the agent's HTTP server inside the guest (envd's well-known port). */
export const agentPort = 49983;
/** Value of $PORT for the function runner inside the guest. The `process` hypervisor uses another one: see `RestoreReply`. */
export const runnerPort = 8080;
/** Name of the virtio-serial port that carries the control channel. */
export const controlPortName = 'thaw.control';
/** Where there is no such port: the host's vsock port that the agent calls. */
export const controlVsockPort = 1024;
/** Header that authorises the internal `/_thaw/*` routes; its value is the secret given in `restore` or `boot`. */
export const secretHeader = 'x-thaw-secret';
/** Header a runner sets on a response that stands for a failure of the function's own code. */
export const functionErrorHeader = 'x-thaw-error';

// --- Control channel: one JSON object per line, at most 256 KiB. Host asks, guest answers with the same id. ---

/**
 * The first word to a freshly booted agent, and the after-restore handshake of every clone. The agent answers only
 * when the kernel and every runner process are reseeded, the clock is set and the identity is in place.
 */
export interface RestoreRequest {
  id: number;
  op: 'restore';
  /** Fresh for every VM; the agent serves nothing until it has one that follows its last `seal` or `hold`. */
  generation: string;
  /** 64 random bytes, base64. */
  seed: string;
  /** Host's wall clock when the request was written, milliseconds since 1970. */
  wallClockMs: number;
  hostname: string;
  /** 32 hex characters. */
  machineId: string;
  /** Authorises `/_thaw/*` on this VM only. */
  secret: string;
}

export interface RestoreReply {
  id: number;
  ok: true;
  generation: string;
  /** The nonce of the snapshot this memory came from; '' after a boot. */
  nonce: string;
  /** Where to dial inside the guest. `runner` is 0 while no runner has been started. */
  ports: { agent: number; runner: number };
}

/** Asks the agent to close its connections, forget its generation and remember `nonce`: the VM is about to be captured. */
export interface SealRequest {
  id: number;
  op: 'seal';
  nonce: string;
  /** Files that the guest's kernel holds in memory and nobody uses are written and forgotten: its snapshot is smaller. */
  dropCaches?: boolean;
}

/**
 * The VM is about to be captured and will go on afterwards: from the reply on the agent serves no new request, it lets
 * them wait, and its memory is what a `seal` would have made it for whoever is restored from it. Answered by a plain
 * `ok` reply. Requests and streams that were begun go on.
 */
export interface HoldRequest {
  id: number;
  op: 'hold';
  nonce: string;
}

/** The capture is over and this is the VM that was captured, not a clone: it goes on as before the `hold` of this nonce. */
export interface ProceedRequest {
  id: number;
  op: 'proceed';
  nonce: string;
  /** Host's wall clock when the request was written, milliseconds since 1970: the guest's stood still meanwhile. */
  wallClockMs: number;
}

/** Sets the wall clock again: the `restore` before it was so long on its way that its time was old on arrival. */
export interface ClockRequest {
  id: number;
  op: 'clock';
  wallClockMs: number;
}

export interface HealthRequest {
  id: number;
  op: 'health';
}

/** `health` answers in every state and says which. */
export interface HealthReply {
  id: number;
  ok: true;
  state: 'booted' | 'ready' | 'held' | 'sealed';
  generation: string;
  uptimeMs: number;
}

export interface ControlFailure {
  id: number;
  ok: false;
  message: string;
}

/** Unasked: a line the runner wrote. Rate-limited in the guest; `dropped` counts lines lost since the last event. */
export interface LogEvent {
  event: 'log';
  stream: 'stdout' | 'stderr';
  line: string;
  atMs: number;
  dropped?: number;
}

/** Unasked: the runner process ended without being told to. */
export interface RunnerExitEvent {
  event: 'runner-exit';
  exitCode: number | null;
  signal: string | null;
}

export type ControlRequest =
  | ClockRequest
  | RestoreRequest
  | SealRequest
  | HoldRequest
  | ProceedRequest
  | HealthRequest;
/** A request as the caller writes it; the control client adds the id. */
export type ControlCommand =
  | Omit<RestoreRequest, 'id'>
  | Omit<SealRequest, 'id'>
  | Omit<HoldRequest, 'id'>
  | Omit<ProceedRequest, 'id'>
  | Omit<ClockRequest, 'id'>
  | Omit<HealthRequest, 'id'>;
export type ControlEvent = LogEvent | RunnerExitEvent;

// --- Internal HTTP routes on the agent's port, all with `x-thaw-secret`; the gateway never exposes them. ---
// PUT  /_thaw/bundle   body: plain tar. Extracts into the function directory (emptied first), owner `user`. 204.
// POST /_thaw/runner   body: RunnerSpec. Answers application/x-ndjson of RunnerProgress; the last line is `ready` or `failed`.
// POST /_thaw/init     body: SandboxInit. 204. Makes the VM a sandbox: token, environment, default user.

export interface RunnerSpec {
  /** `listening`: nothing is started; a program that runs already is found by its answer on `port`. */
  runtime: 'node' | 'python' | 'command' | 'listening';
  /** Path inside the bundle; absent: found by convention. */
  entry?: string;
  /** argv of the program, for `command`. */
  command?: string[];
  /** argv run once before the program starts. */
  build?: string[];
  /** `home`: it runs in its user's home, with the environment of the sandbox whose snapshot this VM came from. Default: `bundle`. */
  place?: 'bundle' | 'home';
  /** Port the program listens on; default `runnerPort`. */
  port?: number;
  env: Record<string, string>;
  /** How long the program may take until it answers on its port. */
  startTimeoutMs: number;
}

export type RunnerProgress =
  | { type: 'output'; stage: 'build' | 'start'; stream: 'stdout' | 'stderr'; text: string }
  | { type: 'ready'; port: number; elapsedMs: number }
  | { type: 'failed'; stage: 'build' | 'start'; message: string };

export interface SandboxInit {
  accessToken: string;
  /** Added to those of the sandbox whose snapshot this VM came from; the same name: these win. */
  envVars: Record<string, string>;
  /** Absent: that of the sandbox whose snapshot this VM came from, else `user`. */
  defaultUser?: string;
  /** Absent: that of the sandbox whose snapshot this VM came from, if it had one. */
  defaultWorkdir?: string;
}

// --- How the agent is started (environment variables) ---
// THAW_AGENT_MODE     `guest` (tini's child in a VM) or `process` (a host process: no clock, host name or entropy changes)
// THAW_AGENT_CONTROL  guest: path of the virtio-serial device, or `vsock:PORT` of the host; process: path of a unix socket the agent listens on
// THAW_AGENT_ROOT     directory of the agent's state: ROOT/function is the bundle. guest: /srv/thaw
// THAW_AGENT_PORT     HTTP port; 0 picks a free one (process). Bound to 0.0.0.0 in a guest, 127.0.0.1 in process mode.
// In process mode the agent keeps ROOT/runner.json and ROOT/nonce and, when they exist at start, starts that runner
// before it answers `restore`: this is how the `process` hypervisor imitates a warm snapshot.
