// Owns what users of the SDK import. Refuses to own any of it.

export type { CommandResult, OutputListener } from './command-handle.ts';
export { CommandHandle } from './command-handle.ts';
export { Commands, type ProcessInfo, type RunOptions } from './commands.ts';
export type { CallOptions, ConnectionOptions } from './connection.ts';
export type { EntryInfo } from './entry-info.ts';
export {
  AuthenticationError,
  BuildError,
  CommandExitError,
  ConflictError,
  DeadlineExceededError,
  InvalidRequestError,
  NoCapacityError,
  NoSpaceError,
  NotFoundError,
  NotOfferedError,
  RateLimitError,
  ThawError,
  UnreachableError,
} from './errors.ts';
export { type FileContent, Files, type WriteOptions, type WrittenFile } from './files.ts';
export {
  type DeployOptions,
  type FromSnapshotOptions,
  type FunctionInfo,
  Functions,
  type FunctionVersion,
  type InvokeOptions,
} from './functions.ts';
export type { PortRequest } from './ports.ts';
export { Pty, PtyHandle, type PtyOptions, type PtySize } from './pty.ts';
export {
  type ConnectOptions,
  type CreateOptions,
  type ForkOptions,
  type ListOptions,
  Sandbox,
} from './sandbox.ts';
export type {
  NetworkOptions,
  SandboxInfo,
  SandboxMetrics,
  SandboxState,
  SnapshotInfo,
} from './sandbox-info.ts';
export { type SnapshotDetails, type SnapshotListOptions, Snapshots } from './snapshots.ts';
export { type FilesystemEvent, WatchHandle, type WatchOptions } from './watch-handle.ts';
