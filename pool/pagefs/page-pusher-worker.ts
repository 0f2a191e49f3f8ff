// Owns the pushing thread's work: one notice to the kernel for each place. Started by page-pusher.ts.
import { writevSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { encodeStore } from './fuse-protocol.ts';

export interface PushRequest {
  id: number;
  nodeId: number;
  /** Of all places, one after the other. */
  bytes: Uint8Array<ArrayBuffer>;
  offsetsBytes: Float64Array;
  sizesBytes: Float64Array;
}

export interface PushReply {
  id: number;
  error?: string;
}

const fd = workerData as number;

parentPort!.on('message', (request: PushRequest) => {
  parentPort!.postMessage(answerTo(request));
});

function answerTo({ id, nodeId, bytes, offsetsBytes, sizesBytes }: PushRequest): PushReply {
  let at = 0;
  try {
    for (const [index, offsetBytes] of offsetsBytes.entries()) {
      const sizeBytes = sizesBytes[index]!;
      const place = Buffer.from(bytes.buffer, bytes.byteOffset + at, sizeBytes);
      at += sizeBytes;
      writevSync(fd, encodeStore(nodeId, offsetBytes, [place]));
    }
    return { id };
  } catch (error) {
    // The kernel has not looked the file up, or has forgotten it again: the guest will ask instead.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { id };
    return { id, error: (error as Error).message };
  }
}
