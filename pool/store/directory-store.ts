// Owns the blob store in a directory: one file an object, named by its key.
// Refuses to own sharing between hosts beyond what the file system gives. Invariant: a file under `objects/` is whole
// and on disk: it was written and synced under `incoming/` and then linked in, which fails where the name is taken.
import { randomBytes } from 'node:crypto';
import { createReadStream, statSync } from 'node:fs';
import { type FileHandle, link, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  type BlobInfo,
  type BlobStore,
  type ByteRange,
  checkKey,
  checkPrefix,
  checkRange,
  type FileSource,
  type GetOptions,
  type ListOptions,
  type ListPage,
  limitOf,
  maxGetBytes,
  type PutOutcome,
  type RequestOptions,
  StoreError,
} from './blob-store.ts';
import { walkKeys } from './directory-walk.ts';
import { boundedStream, RequestEnd, runRequest } from './request.ts';

const copyBytes = 1024 * 1024;
/** `stat` calls in one go: each takes 4 µs here, and ten times that by way of the thread pool. */
const statBatch = 128;

export class DirectoryStore implements BlobStore {
  readonly url: string;
  readonly #objectsDir: string;
  readonly #incomingDir: string;

  private constructor(dir: string) {
    this.url = `file://${dir}`;
    this.#objectsDir = join(dir, 'objects');
    this.#incomingDir = join(dir, 'incoming');
  }

  static async open(dir: string): Promise<DirectoryStore> {
    const store = new DirectoryStore(dir);
    try {
      for (const path of [store.#objectsDir, store.#incomingDir])
        await mkdir(path, { recursive: true, mode: 0o700 });
    } catch (error) {
      throw storeErrorOf(error, `the store ${store.url}`);
    }
    return store;
  }

  put(key: string, body: Uint8Array, options: RequestOptions = {}): Promise<PutOutcome> {
    return this.#write('put', key, options, (file) => file.writeFile(body), linkIn);
  }

  putFile(key: string, source: FileSource, options: RequestOptions = {}): Promise<PutOutcome> {
    const write = (file: FileHandle, end: RequestEnd) => copyInto(file, source, end);
    return this.#write('put', key, options, write, linkIn);
  }

  async replace(key: string, body: Uint8Array, options: RequestOptions = {}): Promise<void> {
    await this.#write('replace', key, options, (file) => file.writeFile(body), renameIn);
  }

  get(key: string, options: GetOptions = {}): Promise<Buffer> {
    return this.#request('get', key, options, async (path) => {
      await using file = await open(path, 'r');
      const range = await rangeIn(file, key, options.range);
      if (range.sizeBytes > maxGetBytes)
        throw new StoreError('invalid', `${key} has ${range.sizeBytes} bytes: too many for memory`);
      const bytes = Buffer.allocUnsafe(range.sizeBytes);
      await readFully(file, bytes, range.offsetBytes, key);
      return bytes;
    });
  }

  async getStream(key: string, options: GetOptions = {}): Promise<Readable> {
    const what = `get of ${key}`;
    const end = new RequestEnd(what, options);
    try {
      const { path, range } = await end.race(this.#locate(key, options.range));
      const { offsetBytes: start, sizeBytes } = range;
      const last = start + sizeBytes - 1;
      const source =
        sizeBytes === 0
          ? Readable.from([])
          : createReadStream(path, { start, end: last, highWaterMark: copyBytes });
      const translate = (error: unknown) => storeErrorOf(error, what);
      return boundedStream(what, source, sizeBytes, end, translate);
    } catch (error) {
      end.release();
      throw storeErrorOf(error, what);
    }
  }

  head(key: string, options: RequestOptions = {}): Promise<BlobInfo | undefined> {
    return this.#request('head', key, options, (path) => infoOf(key, path)).catch(undefinedIfAbsent);
  }

  async list(prefix: string, options: ListOptions = {}): Promise<ListPage<BlobInfo>> {
    const { entries: keys, next } = await this.listKeys(prefix, options);
    const entries: BlobInfo[] = [];
    await runRequest(`list of ${prefix}`, options, async (end) => {
      for (let at = 0; at < keys.length; at += statBatch) {
        end.throwIfEnded();
        for (const key of keys.slice(at, at + statBatch)) {
          const info = statSync(join(this.#objectsDir, key), { throwIfNoEntry: false });
          // One that was deleted since the walk is simply not listed.
          if (info) entries.push({ key, sizeBytes: info.size, modifiedAtMs: info.mtimeMs });
        }
        await nextTurn();
      }
    }).catch((error: unknown) => {
      throw storeErrorOf(error, `list of ${prefix}`);
    });
    return { entries, next };
  }

  listKeys(prefix: string, options: ListOptions = {}): Promise<ListPage<string>> {
    checkPrefix(prefix);
    // A directory has no page size of its own: without a limit all of it comes in one walk.
    const limit = options.limit === undefined ? Number.POSITIVE_INFINITY : limitOf(options);
    return runRequest(`list of ${prefix}`, options, async (end) => {
      const keys = await walkKeys(
        {
          rootDir: this.#objectsDir,
          after: options.after ?? '',
          maxKeys: limit + 1,
          throwIfEnded: () => end.throwIfEnded(),
        },
        prefix,
      );
      const entries = keys.slice(0, limit);
      return { entries, next: keys.length > limit ? entries.at(-1) : undefined };
    }).catch((error: unknown) => {
      throw storeErrorOf(error, `list of ${prefix}`);
    });
  }

  delete(key: string, options: RequestOptions = {}): Promise<void> {
    return this.#request('delete', key, options, (path) => rm(path, { force: true }));
  }

  async sweepUnfinished(olderThanMs: number): Promise<number> {
    let swept = 0;
    for (const name of await readdir(this.#incomingDir)) {
      const path = join(this.#incomingDir, name);
      const info = await stat(path).catch(() => undefined);
      if (info === undefined || Date.now() - info.mtimeMs < olderThanMs) continue;
      await rm(path, { force: true });
      swept += 1;
    }
    return swept;
  }

  async close(): Promise<void> {}

  #pathOf(key: string): string {
    return join(this.#objectsDir, checkKey(key));
  }

  async #locate(key: string, range?: ByteRange): Promise<{ path: string; range: ByteRange }> {
    const path = this.#pathOf(key);
    await using file = await open(path, 'r');
    return { path, range: await rangeIn(file, key, range) };
  }

  async #request<T>(
    op: string,
    key: string,
    options: RequestOptions,
    work: (path: string, end: RequestEnd) => Promise<T>,
  ): Promise<T> {
    const what = `${op} of ${key}`;
    try {
      const path = this.#pathOf(key);
      return await runRequest(what, options, (end) => work(path, end));
    } catch (error) {
      throw storeErrorOf(error, what);
    }
  }

  #write<T>(
    op: string,
    key: string,
    options: RequestOptions,
    write: (file: FileHandle, end: RequestEnd) => Promise<void>,
    publish: (incoming: string, path: string) => Promise<T>,
  ): Promise<T> {
    return this.#request(op, key, options, async (path, end) => {
      const incoming = join(this.#incomingDir, randomBytes(12).toString('hex'));
      try {
        await using file = await open(incoming, 'wx', 0o600);
        await write(file, end);
        await file.sync();
        end.throwIfEnded();
        await makeDir(dirname(path), this.#objectsDir);
        const outcome = await publish(incoming, path);
        await syncDir(dirname(path));
        return outcome;
      } finally {
        await rm(incoming, { force: true });
      }
    });
  }
}

async function linkIn(incoming: string, path: string): Promise<PutOutcome> {
  try {
    await link(incoming, path);
    return 'created';
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return 'exists';
    throw error;
  }
}

const renameIn = (incoming: string, path: string): Promise<void> => rename(incoming, path);

/** Directories that were not there are synced into their parents, or the object's name could be lost with theirs. */
async function makeDir(dir: string, rootDir: string): Promise<void> {
  const created = await mkdir(dir, { recursive: true, mode: 0o700 });
  if (created === undefined) return;
  for (let parent = dirname(dir); parent.startsWith(rootDir); parent = dirname(parent)) await syncDir(parent);
}

async function syncDir(dir: string): Promise<void> {
  await using handle = await open(dir, 'r');
  await handle.sync();
}

async function infoOf(key: string, path: string): Promise<BlobInfo> {
  const { size, mtimeMs } = await stat(path);
  return { key, sizeBytes: size, modifiedAtMs: mtimeMs };
}

async function rangeIn(file: FileHandle, key: string, range?: ByteRange): Promise<ByteRange> {
  const { size } = await file.stat();
  if (!range) return { offsetBytes: 0, sizeBytes: size };
  const { offsetBytes, sizeBytes } = checkRange(range);
  if (offsetBytes + sizeBytes > size)
    throw new StoreError('out-of-range', `${key} has ${size} bytes, not ${sizeBytes} at ${offsetBytes}`);
  return range;
}

async function readFully(file: FileHandle, bytes: Buffer, offsetBytes: number, key: string): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, offsetBytes + done);
    if (bytesRead === 0) throw new StoreError('out-of-range', `${key} ended early`);
    done += bytesRead;
  }
}

async function copyInto(to: FileHandle, source: FileSource, end: RequestEnd): Promise<void> {
  await using from = await open(source.path, 'r');
  const buffer = Buffer.allocUnsafe(Math.min(copyBytes, source.sizeBytes));
  for (let done = 0; done < source.sizeBytes; ) {
    end.throwIfEnded();
    const bytes = buffer.subarray(0, Math.min(buffer.length, source.sizeBytes - done));
    await readFully(from, bytes, source.offsetBytes + done, source.path);
    await to.writeFile(bytes);
    done += bytes.length;
  }
}

const undefinedIfAbsent = (error: unknown): undefined => {
  if (error instanceof StoreError && error.failure === 'absent') return undefined;
  throw error;
};

function storeErrorOf(error: unknown, what: string): StoreError {
  if (error instanceof StoreError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const failure = failureOf(code ?? '');
  return new StoreError(failure, `${what}: ${message}`, { cause: error });
}

function failureOf(code: string) {
  if (code === 'ENOENT' || code === 'ENOTDIR') return 'absent';
  if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'EFBIG') return 'full';
  if (['EACCES', 'EPERM', 'EROFS', 'EISDIR', 'ENAMETOOLONG'].includes(code)) return 'refused';
  return 'unavailable';
}
