// Owns what a public call acts with: its user, that user's account and where relative paths start.
// Invariant: a name that is no user of the guest is refused before anything is touched.
import { stat } from 'node:fs/promises';
import { isAbsolute, join, resolve } from 'node:path';
import { ConnectError } from '../../shared/connect-frames.ts';
import { type Account, type Accounts, readAccounts } from './accounts.ts';
import type { SandboxFacts } from './agent-state.ts';
import type { Settings } from './settings.ts';

export interface Caller {
  account: Account;
  accounts: Accounts;
  /** Base of relative paths. */
  workdir: string;
}

/** @param userName '' for the sandbox's default user. @throws ConnectError `unauthenticated` for an unknown user. */
export function callerOf(settings: Settings, sandbox: SandboxFacts, userName: string): Caller {
  const accounts = readAccounts(settings);
  const account = accounts.find(userName || sandbox.defaultUser);
  if (account === undefined)
    throw new ConnectError('unauthenticated', `no such user: ${JSON.stringify(userName.slice(0, 64))}`);
  return { account, accounts, workdir: sandbox.defaultWorkdir || account.home };
}

/** The kernel's PATH_MAX. */
const maxPathBytes = 4096;

/**
 * `~` is the home, relative paths start in the working directory.
 * @throws ConnectError `invalid_argument` for what no path of the kernel can be.
 */
export function guestPath(caller: Caller, path: string): string {
  if (path.includes('\0')) throw new ConnectError('invalid_argument', 'a path must not hold a NUL');
  if (Buffer.byteLength(path) >= maxPathBytes)
    throw new ConnectError('invalid_argument', `a path must be shorter than ${maxPathBytes} bytes`);
  if (path === '~' || path.startsWith('~/')) return join(caller.account.home, path.slice(1));
  if (path.startsWith('~'))
    throw new ConnectError('invalid_argument', `${path.slice(0, 64)}: only ~ and ~/ can be expanded`);
  return isAbsolute(path) ? resolve(path) : resolve(caller.workdir, path);
}

/** @throws ConnectError `invalid_argument` when `cwd` is not a directory. */
export async function workingDirectory(caller: Caller, cwd: string): Promise<string> {
  const path = guestPath(caller, cwd);
  const facts = await stat(path).catch(() => undefined);
  if (facts === undefined) throw new ConnectError('invalid_argument', `cwd '${path}' does not exist`);
  if (!facts.isDirectory()) throw new ConnectError('invalid_argument', `cwd '${path}' is not a directory`);
  return path;
}
