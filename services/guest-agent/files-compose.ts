// Owns POST /files/compose: several files become one, in the order given, and are gone afterwards.
// Refuses to own who may write (http-server.ts). Loaded when it is first asked for.
// Invariant: the destination appears whole or not at all, and no source is removed before it is there.
import { randomBytes } from 'node:crypto';
import { chown, type FileHandle, open, rename, stat, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { ConnectError } from '../../shared/connect-frames.ts';
import { type Caller, guestPath } from './caller.ts';
import { type Message, textField, textListField } from './connect-json.ts';
import { makeDirectories } from './filesystem-service.ts';

const maxSources = 10_000;
const chunkBytes = 256 * 1024;

/** @throws ConnectError or the file system's error, which names its path. */
export async function composeFiles(caller: Caller, message: Message): Promise<object> {
  const sources = textListField(message, 'source_paths').map((path) => guestPath(caller, path));
  const given = textField(message, 'destination');
  if (given === '') throw invalid('destination is missing');
  if (sources.length === 0 || sources.length > maxSources)
    throw invalid(`source_paths must name 1 to ${maxSources} files`);
  for (const source of sources) await requireFile(source);
  const destination = guestPath(caller, given);
  const facts = await stat(destination).catch(() => undefined);
  if (facts?.isDirectory()) throw invalid(`path '${destination}' is a directory`);
  await makeDirectories(dirname(destination), caller.account);
  await concatenate(sources, destination, caller);
  // One that was already removed is named twice, or somebody else did it.
  for (const source of sources) if (source !== destination) await unlink(source).catch(() => {});
  return { path: destination, name: basename(destination), type: 'file' };
}

async function requireFile(path: string): Promise<void> {
  const facts = await stat(path);
  if (facts.isDirectory()) throw invalid(`path '${path}' is a directory`);
  if (!facts.isFile()) throw invalid(`path '${path}' is not a regular file`);
}

async function concatenate(sources: string[], destination: string, { account }: Caller): Promise<void> {
  const partial = join(dirname(destination), `.compose-${randomBytes(6).toString('hex')}`);
  const into = await open(partial, 'wx');
  try {
    const chunk = Buffer.allocUnsafeSlow(chunkBytes);
    for (const source of sources) await append(source, into, chunk);
    await chown(partial, account.uid, account.gid);
    await rename(partial, destination);
  } catch (error) {
    await unlink(partial).catch(() => {});
    throw error;
  } finally {
    await into.close();
  }
}

async function append(source: string, into: FileHandle, chunk: Buffer): Promise<void> {
  const from = await open(source, 'r');
  try {
    for (;;) {
      const { bytesRead } = await from.read(chunk, 0, chunk.length, null);
      if (bytesRead === 0) return;
      for (let at = 0; at < bytesRead; ) at += (await into.write(chunk, at, bytesRead - at)).bytesWritten;
    }
  } finally {
    await from.close();
  }
}

const invalid = (message: string) => new ConnectError('invalid_argument', message);
