// Owns turning a function's directory into the archive that is uploaded, and finding out its name.
// Refuses to own what the archive may contain: the gateway checks that. Invariant: files are streamed, entries come in
// one order, and times and owners are left out: the same content gives the same bytes.
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import { lstat, opendir, readFile, readlink } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { Readable, type Writable } from 'node:stream';
import { pack } from 'tar-stream';
import { ThawError } from '../../shared/errors.ts';
import { parseFunctionManifest } from '../../shared/function-manifest.ts';
import { functionNamePattern } from '../../shared/ids.ts';
import { UsageError } from './failure.ts';

/** Never part of a function: history and Thaw's own data. */
const ignored = new Set(['.git', '.thaw']);
/** Above the gateway's limit on entries; a directory this large was not meant. */
const maxEntries = 100_000;

export interface Bundle {
  name: string;
  files: number;
  sizeBytes: number;
  /** A plain tar; read it once. */
  stream(): Readable;
}

interface Entry {
  name: string;
  path: string;
  kind: 'file' | 'directory' | 'symlink';
  mode: number;
  sizeBytes: number;
  target: string;
}

/** @throws UsageError | ThawError `bad-manifest`. */
export async function packDirectory(dir: string, nameFlag?: string): Promise<Bundle> {
  const facts = await lstat(dir).catch(() => undefined);
  if (!facts?.isDirectory()) throw new UsageError(`${dir} is not a directory`);
  const name = await nameOf(dir, nameFlag);
  const entries: Entry[] = [];
  await collect(dir, '', entries);
  const files = entries.filter((entry) => entry.kind === 'file');
  return {
    name,
    files: files.length,
    sizeBytes: files.reduce((total, entry) => total + entry.sizeBytes, 0),
    stream: () => archiveOf(entries),
  };
}

/** From thaw.json, which is checked here so that its mistakes are found before anything is sent; else the directory's. */
async function nameOf(dir: string, nameFlag: string | undefined): Promise<string> {
  const path = join(dir, 'thaw.json');
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw new UsageError(`${path} cannot be read: ${error.message}`);
  });
  if (text !== undefined) {
    const { name } = parseFunctionManifest(parsedJson(text));
    if (nameFlag !== undefined && nameFlag !== name)
      throw new UsageError(`--name ${nameFlag}: thaw.json names this function ${name}`);
    return name;
  }
  const name = nameFlag ?? basename(resolve(dir));
  if (!functionNamePattern.test(name))
    throw new UsageError(
      `${name} is no name for a function (${functionNamePattern.source}); give one with --name`,
    );
  return name;
}

function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ThawError('bad-manifest', `thaw.json is not JSON: ${(error as Error).message}`);
  }
}

async function collect(dir: string, prefix: string, entries: Entry[]): Promise<void> {
  const names: string[] = [];
  for await (const { name } of await opendir(dir)) if (!ignored.has(name)) names.push(name);
  for (const child of names.sort()) {
    if (entries.length >= maxEntries)
      throw new UsageError(`the directory has more than ${maxEntries} entries`);
    const path = join(dir, child);
    const name = `${prefix}${child}`;
    const facts = await lstat(path);
    const common = { path, mode: facts.mode & 0o755, sizeBytes: 0, target: '' };
    if (facts.isDirectory()) {
      entries.push({ ...common, name: `${name}/`, kind: 'directory' });
      await collect(path, `${name}/`, entries);
    } else if (facts.isSymbolicLink())
      entries.push({ ...common, name, kind: 'symlink', target: await readlink(path) });
    else if (facts.isFile()) entries.push({ ...common, name, kind: 'file', sizeBytes: facts.size });
    else throw new UsageError(`${path} is neither a file, a directory nor a link`);
  }
}

function archiveOf(entries: Entry[]): Readable {
  const archive = pack();
  const fill = async () => {
    for (const entry of entries) await add(archive, entry);
    archive.finalize();
  };
  fill().catch((error: Error) => archive.destroy(error));
  // tar-stream's streams are of another make: those who read this expect Node's.
  return Readable.from(archive, { objectMode: false });
}

async function add(archive: ReturnType<typeof pack>, entry: Entry): Promise<void> {
  const { name, kind, mode, sizeBytes, target } = entry;
  const header = { name, mode, mtime: new Date(0), type: kind };
  if (kind !== 'file') {
    await new Promise<void>((done, failed) => {
      const linkname = kind === 'symlink' ? { linkname: target } : {};
      archive.entry({ ...header, ...linkname }, (error) => (error ? failed(error) : done()));
    });
    return;
  }
  const sink = archive.entry({ ...header, size: sizeBytes }) as unknown as Writable;
  // Exactly the announced size: a file that grows meanwhile must not spoil the archive.
  if (sizeBytes > 0)
    for await (const chunk of createReadStream(entry.path, { end: sizeBytes - 1 }))
      if (!sink.write(chunk)) await once(sink, 'drain');
  const finished = once(sink, 'close');
  sink.end();
  await finished;
}
