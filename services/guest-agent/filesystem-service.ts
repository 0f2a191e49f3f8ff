// Owns envd's filesystem.Filesystem methods. Acts as root on paths that the caller names, and gives what it makes to
// the caller's user, as envd does.
// Refuses to own file contents (files-routes.ts).
// Invariant: an error of the file system becomes the Connect code that clients branch on.
import { chown, lstat, mkdir, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type ConnectCode, ConnectError } from '../../shared/connect-frames.ts';
import type { Account } from './accounts.ts';
import { type Caller, guestPath } from './caller.ts';
import { JsonPieces, type Message, numberField, textField } from './connect-json.ts';
import { EntryReader } from './entry-info.ts';
import { spawnPiped } from './spawn-piped.ts';

const maxListedEntries = 100_000;
/** More would not be faster with the few threads that Node asks the file system with. */
const entriesAtOnce = 256;

export async function statEntry(caller: Caller, message: Message): Promise<object> {
  const path = pathField(caller, message, 'path');
  return { entry: await entryOf(caller, path).catch(asFileError(path)) };
}

export async function makeDirectory(caller: Caller, message: Message): Promise<object> {
  const path = pathField(caller, message, 'path');
  const facts = await stat(path).catch(() => undefined);
  if (facts?.isDirectory()) throw new ConnectError('already_exists', `directory already exists: ${path}`);
  if (facts) throw new ConnectError('invalid_argument', `path exists and is not a directory: ${path}`);
  await makeDirectories(path, caller.account).catch(asFileError(path));
  return { entry: await entryOf(caller, path).catch(asFileError(path)) };
}

export async function moveEntry(caller: Caller, message: Message): Promise<object> {
  const source = namedPath(caller, message, 'source');
  const destination = namedPath(caller, message, 'destination');
  await lstat(source).catch(asFileError(source));
  await makeDirectories(dirname(destination), caller.account).catch(asFileError(destination));
  await rename(source, destination).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'EXDEV') return moveAcross(source, destination, caller);
    return asFileError(destination)(error);
  });
  return { entry: await entryOf(caller, destination).catch(asFileError(destination)) };
}

export async function listDirectory(caller: Caller, message: Message): Promise<object> {
  const path = pathField(caller, message, 'path');
  const depth = Math.max(1, numberField(message, 'depth'));
  const facts = await stat(path).catch(asFileError(path));
  if (!facts.isDirectory()) throw new ConnectError('invalid_argument', `path is not a directory: ${path}`);
  const paths: string[] = [];
  await walk(path, depth, paths).catch(asFileError(path));
  const entries = new EntryReader(caller.accounts);
  if (paths.length <= entriesAtOnce) return { entries: await readBatch(entries, paths) };
  return new JsonPieces(listing(entries, paths));
}

/** A long listing is sent as it is read: it never is in memory as a whole. */
async function* listing(entries: EntryReader, paths: string[]): AsyncGenerator<string> {
  let opening = '{"entries":[';
  for (let at = 0; at < paths.length; at += entriesAtOnce) {
    const batch = await readBatch(entries, paths.slice(at, at + entriesAtOnce));
    if (batch.length === 0) continue;
    yield opening + JSON.stringify(batch).slice(1, -1);
    opening = ',';
  }
  yield opening === ',' ? ']}' : '{"entries":[]}';
}

async function readBatch(entries: EntryReader, paths: string[]): Promise<object[]> {
  // One that vanished since it was read is not an error of the listing.
  const found = await Promise.all(paths.map((path) => entries.read(path).catch(() => undefined)));
  return found.filter((entry) => entry !== undefined);
}

const entryOf = (caller: Caller, path: string): Promise<object> =>
  new EntryReader(caller.accounts).read(path);

export async function removeEntry(caller: Caller, message: Message): Promise<object> {
  const path = namedPath(caller, message, 'path');
  await rm(path, { recursive: true, force: true }).catch(asFileError(path));
  return {};
}

async function walk(directory: string, depth: number, into: string[]): Promise<void> {
  const entries = await readdir(directory, { withFileTypes: true });
  entries.sort((one, other) => (one.name < other.name ? -1 : 1));
  for (const entry of entries) {
    const path = join(directory, entry.name);
    if (into.push(path) > maxListedEntries)
      throw new ConnectError('resource_exhausted', `a listing may have ${maxListedEntries} entries`);
    if (depth > 1 && entry.isDirectory()) await walk(path, depth - 1, into).catch(ignoreGone);
  }
}

function ignoreGone(error: NodeJS.ErrnoException): void {
  if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error;
}

/** Makes what is missing of `path` and gives that to the account. */
export async function makeDirectories(path: string, account: Account): Promise<void> {
  const missing: string[] = [];
  for (let at = path; (await stat(at).catch(() => undefined)) === undefined; at = dirname(at))
    missing.unshift(at);
  for (const directory of missing) {
    await mkdir(directory).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error;
    });
    await chown(directory, account.uid, account.gid);
  }
}

async function moveAcross(source: string, destination: string, caller: Caller): Promise<void> {
  // As the agent itself: `account.switches` false keeps its identity, as for every other method here.
  const account = { ...caller.account, switches: false };
  const argv = ['mv', '-T', '--', source, destination];
  const env = { PATH: '/usr/bin:/bin' };
  const program = await spawnPiped({ argv, cwd: '/', env, account, stdin: false });
  program.stdout.resume();
  program.stderr.resume();
  const { exitCode } = await program.ended;
  if (exitCode !== 0) throw new ConnectError('internal', `cannot move to ${destination}`);
}

export function pathField(caller: Caller, message: Message, name: string): string {
  return guestPath(caller, textField(message, name));
}

/** An empty path is the working directory everywhere else: what would take it away wants it named. */
function namedPath(caller: Caller, message: Message, name: string): string {
  if (textField(message, name) === '') throw new ConnectError('invalid_argument', `${name} is missing`);
  return pathField(caller, message, name);
}

const codes: Record<string, ConnectCode> = {
  ENOENT: 'not_found',
  ENOTDIR: 'invalid_argument',
  ENAMETOOLONG: 'invalid_argument',
  ELOOP: 'invalid_argument',
  EINVAL: 'invalid_argument',
  EISDIR: 'invalid_argument',
  EBUSY: 'failed_precondition',
  EEXIST: 'already_exists',
  ENOTEMPTY: 'already_exists',
  EACCES: 'permission_denied',
  EPERM: 'permission_denied',
  EROFS: 'permission_denied',
  ENOSPC: 'resource_exhausted',
  EDQUOT: 'resource_exhausted',
};

const words: Record<string, string> = {
  ENOENT: 'path not found',
  ENOTDIR: 'a part of the path is not a directory',
  ENAMETOOLONG: 'a name in the path is too long',
  ELOOP: 'the path leads through a loop of links',
  EEXIST: 'path already exists',
  ENOTEMPTY: 'path already exists',
  ENOSPC: 'no space left on the disk',
};

/** Turns the file system's words into the code a client branches on. */
export const asFileError =
  (path: string) =>
  (error: NodeJS.ErrnoException): never => {
    if (error instanceof ConnectError) throw error;
    const code = error.code ?? '';
    throw new ConnectError(codes[code] ?? 'internal', `${words[code] ?? (code || 'error')}: ${path}`);
  };
