// Owns the blob store in an S3 bucket. Imported only where such a store is opened: the client is big.
// Refuses to own retries of whole requests (retry.ts); only the parts of one upload are tried again here.
// Invariant: puts are conditional (If-None-Match), so that of two at once one wins; bodies are signed, so that the
// server refuses what changed on the way; a range that came back shorter than asked is an error.
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import {
  AbortMultipartUploadCommand,
  DeleteObjectCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
} from '@aws-sdk/client-s3';
import {
  type BlobInfo,
  type BlobStore,
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
import { boundedPieces, boundedStream, RequestEnd, runRequest } from './request.ts';
import { isPreconditionFailed, storeErrorOf } from './s3-errors.ts';
import { readPart, type S3Location, uploadInParts, withSignedBody } from './s3-upload.ts';

export interface S3StoreOptions {
  bucket: string;
  /** Without slashes at its ends; may be empty. */
  prefix: string;
  /** Address of a server other than AWS; buckets are then named in the path. */
  endpoint?: string;
  region?: string;
  /** From the environment, the instance or the profile when absent. */
  credentials?: { accessKeyId: string; secretAccessKey: string };
  /** What is bigger is sent in parts of this size. S3 takes no parts under 5 MiB but the last. */
  partBytes?: number;
}

const defaultPartBytes = 8 * 1024 * 1024;
const maxSockets = 128;
const connectTimeoutMs = 5_000;

export class S3Store implements BlobStore {
  readonly url: string;
  readonly #client: S3Client;
  readonly #at: S3Location;
  readonly #partBytes: number;

  constructor(options: S3StoreOptions) {
    const { bucket, prefix, endpoint, credentials } = options;
    this.url = `s3://${bucket}${prefix === '' ? '' : `/${prefix}`}`;
    this.#at = { bucket, prefix: prefix === '' ? '' : `${prefix}/` };
    this.#partBytes = options.partBytes ?? defaultPartBytes;
    const agent = { keepAlive: true, maxSockets };
    this.#client = new S3Client({
      ...(endpoint ? { endpoint, forcePathStyle: true } : {}),
      ...(credentials ? { credentials } : {}),
      ...(options.region || endpoint ? { region: options.region ?? 'us-east-1' } : {}),
      maxAttempts: 1,
      requestHandler: { httpAgent: agent, httpsAgent: agent, connectionTimeout: connectTimeoutMs },
      // The signature covers the body already; a second sum in JavaScript would block the event loop.
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      expectContinueHeader: false,
    });
  }

  put(key: string, body: Uint8Array, options: RequestOptions = {}): Promise<PutOutcome> {
    return this.#request('put', key, options, (end) => this.#putIfAbsent(key, body, end));
  }

  putFile(key: string, source: FileSource, options: RequestOptions = {}): Promise<PutOutcome> {
    return this.#request('put', key, options, async (end) => {
      await using file = await open(source.path, 'r');
      if (source.sizeBytes > this.#partBytes)
        return await uploadInParts(this.#client, this.#at, key, file, source, this.#partBytes, end.signal);
      const { body, sha256 } = await readPart(file, source.offsetBytes, source.sizeBytes);
      return await this.#putIfAbsent(key, body, end, sha256);
    });
  }

  async replace(key: string, body: Uint8Array, options: RequestOptions = {}): Promise<void> {
    await this.#request('replace', key, options, (end) => {
      const command = new PutObjectCommand({ ...this.#object(key), Body: body });
      return this.#client.send(withSignedBody(command, sha256Of(body)), { abortSignal: end.signal });
    });
  }

  get(key: string, options: GetOptions = {}): Promise<Buffer> {
    return this.#request('get', key, options, async (end) => {
      const { body, sizeBytes } = await this.#open(key, options, end);
      if (sizeBytes > maxGetBytes) {
        body.destroy();
        throw new StoreError('invalid', `${key} has ${sizeBytes} bytes: too many for memory`);
      }
      const bytes = Buffer.allocUnsafe(sizeBytes);
      let doneBytes = 0;
      for await (const piece of boundedPieces(`get of ${key}`, body, sizeBytes, end, (e) => e)) {
        piece.copy(bytes, doneBytes);
        doneBytes += piece.length;
      }
      return bytes;
    });
  }

  async getStream(key: string, options: GetOptions = {}): Promise<Readable> {
    const what = `get of ${key}`;
    const end = new RequestEnd(what, options);
    try {
      checkKey(key);
      const { body, sizeBytes } = await end.race(this.#open(key, options, end));
      const translate = (error: unknown) => storeErrorOf(error, what);
      return boundedStream(what, body, sizeBytes, end, translate);
    } catch (error) {
      end.release();
      throw end.signal.aborted ? end.signal.reason : storeErrorOf(error, what);
    }
  }

  head(key: string, options: RequestOptions = {}): Promise<BlobInfo | undefined> {
    return this.#request('head', key, options, async (end) => {
      const command = new HeadObjectCommand(this.#object(key));
      const { ContentLength = 0, LastModified } = await this.#client.send(command, {
        abortSignal: end.signal,
      });
      return { key, sizeBytes: ContentLength, modifiedAtMs: LastModified?.getTime() ?? 0 };
    }).catch((error: unknown) => {
      if (error instanceof StoreError && error.failure === 'absent') return undefined;
      throw error;
    });
  }

  list(prefix: string, options: ListOptions = {}): Promise<ListPage<BlobInfo>> {
    checkPrefix(prefix);
    const { bucket, prefix: root } = this.#at;
    return this.#request('list', undefined, options, async (end) => {
      const command = new ListObjectsV2Command({
        Bucket: bucket,
        Prefix: root + prefix,
        MaxKeys: limitOf(options),
        ...(options.after === undefined ? {} : { StartAfter: root + options.after }),
      });
      const { Contents = [], IsTruncated } = await this.#client.send(command, { abortSignal: end.signal });
      const entries = Contents.map(({ Key = '', Size = 0, LastModified }) => ({
        key: Key.slice(root.length),
        sizeBytes: Size,
        modifiedAtMs: LastModified?.getTime() ?? 0,
      }));
      return { entries, next: IsTruncated ? entries.at(-1)?.key : undefined };
    });
  }

  async listKeys(prefix: string, options: ListOptions = {}): Promise<ListPage<string>> {
    const { entries, next } = await this.list(prefix, options);
    return { entries: entries.map(({ key }) => key), next };
  }

  async delete(key: string, options: RequestOptions = {}): Promise<void> {
    try {
      await this.#request('delete', key, options, (end) =>
        this.#client.send(new DeleteObjectCommand(this.#object(key)), { abortSignal: end.signal }),
      );
    } catch (error) {
      if (!(error instanceof StoreError && error.failure === 'absent')) throw error;
    }
  }

  sweepUnfinished(olderThanMs: number, options: RequestOptions = {}): Promise<number> {
    const { bucket, prefix } = this.#at;
    return this.#request('sweep', undefined, options, async ({ signal }) => {
      const listing = new ListMultipartUploadsCommand({ Bucket: bucket, Prefix: prefix });
      const { Uploads = [] } = await this.#client.send(listing, { abortSignal: signal });
      let swept = 0;
      for (const { Key, UploadId, Initiated } of Uploads) {
        if (Date.now() - (Initiated?.getTime() ?? 0) < olderThanMs) continue;
        const abort = new AbortMultipartUploadCommand({ Bucket: bucket, Key, UploadId });
        await this.#client.send(abort, { abortSignal: signal });
        swept += 1;
      }
      return swept;
    });
  }

  async close(): Promise<void> {
    this.#client.destroy();
  }

  #object(key: string): { Bucket: string; Key: string } {
    return { Bucket: this.#at.bucket, Key: this.#at.prefix + key };
  }

  async #putIfAbsent(
    key: string,
    body: Uint8Array,
    end: RequestEnd,
    sha256 = sha256Of(body),
  ): Promise<PutOutcome> {
    try {
      const command = new PutObjectCommand({ ...this.#object(key), Body: body, IfNoneMatch: '*' });
      await this.#client.send(withSignedBody(command, sha256), { abortSignal: end.signal });
      return 'created';
    } catch (error) {
      if (isPreconditionFailed(error)) return 'exists';
      throw error;
    }
  }

  async #open(
    key: string,
    options: GetOptions,
    end: RequestEnd,
  ): Promise<{ body: Readable; sizeBytes: number }> {
    const range = options.range && checkRange(options.range);
    const last = range ? range.offsetBytes + range.sizeBytes - 1 : 0;
    const command = new GetObjectCommand({
      ...this.#object(key),
      ...(range ? { Range: `bytes=${range.offsetBytes}-${last}` } : {}),
    });
    const { Body, ContentLength = 0 } = await this.#client.send(command, { abortSignal: end.signal });
    const body = Body as Readable;
    if (range && ContentLength !== range.sizeBytes) {
      body.destroy();
      throw new StoreError('out-of-range', `${key}: ${ContentLength} bytes came, not ${range.sizeBytes}`);
    }
    return { body, sizeBytes: ContentLength };
  }

  async #request<T>(
    op: string,
    key: string | undefined,
    options: RequestOptions,
    work: (end: RequestEnd) => Promise<T>,
  ): Promise<T> {
    const what = key === undefined ? `${op} in ${this.url}` : `${op} of ${checkKey(key)}`;
    try {
      return await runRequest(what, options, work);
    } catch (error) {
      throw storeErrorOf(error, what);
    }
  }
}

const sha256Of = (body: Uint8Array): string => createHash('sha256').update(body).digest('hex');
