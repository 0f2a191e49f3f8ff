// Owns uploading one file to S3 in parts. Invariant: the object appears whole or not at all; an upload that fails is
// aborted, and one that is cut off with its process is found by `sweepUnfinished`.
import { createHash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import {
  AbortMultipartUploadCommand,
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  type PutObjectCommand,
  type S3Client,
  UploadPartCommand,
} from '@aws-sdk/client-s3';
import { type FileSource, type PutOutcome, StoreError } from './blob-store.ts';
import { attempts, defaultRetryPolicy } from './retry-policy.ts';
import { isPreconditionFailed, storeErrorOf } from './s3-errors.ts';

export interface S3Location {
  bucket: string;
  /** Empty, or ends in '/'. */
  prefix: string;
}

/** Parts in flight; each is in memory. */
const partsAtOnce = 4;
/** Hashed at a time, so that no step blocks the event loop for more than about a millisecond. */
const hashStepBytes = 1024 * 1024;
const abortTimeoutMs = 5_000;

export async function uploadInParts(
  client: S3Client,
  at: S3Location,
  key: string,
  file: FileHandle,
  source: FileSource,
  partBytes: number,
  signal: AbortSignal,
): Promise<PutOutcome> {
  const object = { Bucket: at.bucket, Key: at.prefix + key };
  const create = new CreateMultipartUploadCommand(object);
  const { UploadId } = await client.send(create, { abortSignal: signal });
  const upload = { ...object, UploadId };
  try {
    const Parts = await sendParts(client, upload, file, source, partBytes, signal);
    const complete = new CompleteMultipartUploadCommand({
      ...upload,
      MultipartUpload: { Parts },
      IfNoneMatch: '*',
    });
    await client.send(complete, { abortSignal: signal });
    return 'created';
  } catch (error) {
    // Not under the caller's signal, which may be what ended the upload.
    const abort = new AbortMultipartUploadCommand(upload);
    await client.send(abort, { abortSignal: AbortSignal.timeout(abortTimeoutMs) }).catch(() => {});
    if (isPreconditionFailed(error)) return 'exists';
    throw error;
  }
}

type Upload = { Bucket: string; Key: string; UploadId: string | undefined };

async function sendParts(
  client: S3Client,
  upload: Upload,
  file: FileHandle,
  source: FileSource,
  partBytes: number,
  signal: AbortSignal,
): Promise<CompletedPart[]> {
  const parts: CompletedPart[] = [];
  const count = Math.ceil(source.sizeBytes / partBytes);
  let nextPart = 0;
  const lane = async () => {
    for (let part = nextPart++; part < count; part = nextPart++) {
      const doneBytes = part * partBytes;
      const sizeBytes = Math.min(partBytes, source.sizeBytes - doneBytes);
      const { body, sha256 } = await readPart(file, source.offsetBytes + doneBytes, sizeBytes);
      const send = async () => {
        const command = new UploadPartCommand({ ...upload, PartNumber: part + 1, Body: body });
        const sent = await client.send(withSignedBody(command, sha256), { abortSignal: signal });
        parts[part] = { PartNumber: part + 1, ETag: sent.ETag };
      };
      await attempts(defaultRetryPolicy, signal, () =>
        send().catch((error: unknown) => {
          throw storeErrorOf(error, `part ${part + 1} of ${upload.Key}`);
        }),
      );
    }
  };
  await Promise.all(Array.from({ length: Math.min(partsAtOnce, count) }, lane));
  return parts;
}

export async function readPart(
  file: FileHandle,
  offsetBytes: number,
  sizeBytes: number,
): Promise<{ body: Buffer; sha256: string }> {
  const body = Buffer.allocUnsafe(sizeBytes);
  const hash = createHash('sha256');
  for (let done = 0; done < sizeBytes; ) {
    const step = Math.min(hashStepBytes, sizeBytes - done);
    const { bytesRead } = await file.read(body, done, step, offsetBytes + done);
    if (bytesRead === 0) throw new StoreError('out-of-range', 'the file to upload ended early');
    hash.update(body.subarray(done, done + bytesRead));
    done += bytesRead;
  }
  return { body, sha256: hash.digest('hex') };
}

/** The digest that the signer would otherwise make of the whole body in one go. */
export function withSignedBody<C extends PutObjectCommand | UploadPartCommand>(
  command: C,
  sha256: string,
): C {
  (command as PutObjectCommand).middlewareStack.add(
    (next) => (args) => {
      (args.request as { headers: Record<string, string> }).headers['x-amz-content-sha256'] = sha256;
      return next(args);
    },
    { step: 'build', name: 'thawSignedBody' },
  );
  return command;
}
