// Owns one copying thread: reads page maps and memory of other processes with few large calls into memory of its own
// that is already faulted in, and writes it out when told. Runs as a worker: nothing here may stop Thaw's event loop.
// Refuses to own what is copied and in which order (copier-crew.ts).
// Invariant: requests are done one after the other; bytes that find no room in memory go to the file at once.
import { readSync, writeSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { addDirtyRuns, bytesOf, cutRuns, RunList, runFields } from './dirty-runs.ts';
import { type Mapping, pageBytes } from './mappings.ts';
import { RemoteReader } from './remote-memory.ts';

/** Makes room for as many bytes, faulted in. */
interface Reserve {
  op: 'reserve';
  sizeBytes: number;
}

/** @returns the runs of pages that the process changed in these mappings. */
interface Scan {
  op: 'scan';
  pagemapFd: number;
  mappings: Mapping[];
}

/** Copies runs, each from its first number on, to be written one after the other from `positionBytes`. @returns bytes not held. */
interface Take {
  op: 'take';
  fromFd: number;
  /** Given: `fromFd` is its memory. */
  pid?: number;
  runs: Float64Array;
  toFd: number;
  positionBytes: number;
}

/**
 * Copies runs as `Take` does and forgets them: from here on a thread that is new is as fast as one that is not.
 * @returns 1 when this thread may not read memory but by its file.
 */
interface Rehearse {
  op: 'rehearse';
  fromFd: number;
  pid: number;
  runs: Float64Array;
}

/** Writes what it holds and holds it no longer. */
interface Write {
  op: 'write';
}

/** The reverse of Take and Write: bytes from `positionBytes` on go to the runs' addresses. */
interface Paste {
  op: 'paste';
  fromFd: number;
  positionBytes: number;
  toFd: number;
  runs: Float64Array;
}

export type CopierWork = Reserve | Scan | Rehearse | Take | Write | Paste;
export type CopierRequest = CopierWork & { id: number };
export type CopierReply =
  | { id: number; value: number | Float64Array }
  | { id: number; code: string | undefined; message: string };

/** Node has it; its types come with the DOM's, which Thaw does not use. */
declare const WebAssembly: {
  Memory: new (limits: { initial: number }) => { readonly buffer: ArrayBuffer; grow(pages: number): number };
};

const wasmPageBytes = 64 * 1024;
/** The start of the memory: page map entries, and bytes that pass through. */
const scratchBytes = 1024 * 1024;
const writeBytes = 4 * 1024 * 1024;

// WebAssembly memory is what V8 offers on page borders: the kernel copies to it twice as fast as to a Buffer.
const memory = new WebAssembly.Memory({ initial: scratchBytes / wasmPageBytes });
let bytes = new Uint8Array(memory.buffer);
let heldBytes = 0;
let parts: { at: number; sizeBytes: number; toFd: number; positionBytes: number }[] = [];

function reserve({ sizeBytes }: Reserve): number {
  const missingBytes = scratchBytes + heldBytes + sizeBytes - bytes.length;
  if (missingBytes > 0) {
    const grownFrom = bytes.length;
    memory.grow(Math.ceil(missingBytes / wasmPageBytes));
    bytes = new Uint8Array(memory.buffer);
    for (let at = grownFrom; at < bytes.length; at += pageBytes) bytes[at] = 0;
  }
  return 0;
}

function scan({ pagemapFd, mappings }: Scan): Float64Array<ArrayBuffer> {
  const runs = new RunList();
  const entries = new Uint32Array(memory.buffer, 0, scratchBytes / 4);
  const chunkBytes = (scratchBytes / 8) * pageBytes;
  for (const mapping of mappings)
    for (let done = 0; done < mapping.sizeBytes; done += chunkBytes) {
      const count = Math.min(chunkBytes, mapping.sizeBytes - done) / pageBytes;
      const address = mapping.address + done;
      readFully(pagemapFd, 0, count * 8, (address / pageBytes) * 8);
      addDirtyRuns(runs, entries, count, address, mapping.offsetBytes + done);
    }
  return runs.numbers();
}

/** Not where a sandbox around Thaw denies it. */
let mayReadMemory = true;

/** The runs, one after the other, to `at`. */
function readRuns(fromFd: number, pid: number | undefined, runs: Float64Array, at: number): void {
  if (runs.length === 0) return;
  if (pid !== undefined && mayReadMemory) mayReadMemory = readRunsOf(pid, runs, at);
  if (pid === undefined || !mayReadMemory) readRunsByFile(fromFd, runs, at);
  // The descriptor, other than the pid, is never another process's: it was this one's memory until here.
  else readFully(fromFd, 0, 1, runs[0]!);
}

/** @returns false when that is not allowed. */
function readRunsOf(pid: number, runs: Float64Array, at: number): boolean {
  try {
    const reader = new RemoteReader(pid, bytes, at);
    for (let run = 0; run < runs.length; run += runFields) reader.add(runs[run]!, runs[run + 2]!);
    reader.flush();
    return true;
  } catch (error) {
    if ((error as { notAllowed?: boolean }).notAllowed) return false;
    throw error;
  }
}

function readRunsByFile(fromFd: number, runs: Float64Array, at: number): void {
  let to = at;
  for (let run = 0; run < runs.length; run += runFields) {
    readFully(fromFd, to, runs[run + 2]!, runs[run]!);
    to += runs[run + 2]!;
  }
}

function take({ fromFd, pid, runs, toFd, positionBytes }: Take): number {
  const at = scratchBytes + heldBytes;
  const [kept, rest] = cutRuns(runs, bytes.length - at);
  readRuns(fromFd, pid, kept, at);
  const sizeBytes = bytesOf(kept);
  heldBytes += sizeBytes;
  parts.push({ at, sizeBytes, toFd, positionBytes });
  let passedBytes = 0;
  for (let run = 0; run < rest.length; run += runFields) {
    pass(fromFd, rest[run]!, toFd, positionBytes + sizeBytes + passedBytes, rest[run + 2]!);
    passedBytes += rest[run + 2]!;
  }
  return passedBytes;
}

function rehearse({ fromFd, pid, runs }: Rehearse): number {
  take({ op: 'take', fromFd, pid, runs, toFd: -1, positionBytes: 0 });
  parts = [];
  heldBytes = 0;
  return mayReadMemory ? 0 : 1;
}

/** Copies from one descriptor to another by way of the scratch memory. */
function pass(fromFd: number, from: number, toFd: number, to: number, sizeBytes: number): void {
  for (let done = 0; done < sizeBytes; done += scratchBytes) {
    const stepBytes = Math.min(scratchBytes, sizeBytes - done);
    readFully(fromFd, 0, stepBytes, from + done);
    writeFully(toFd, 0, stepBytes, to + done);
  }
}

function write(): number {
  const held = parts;
  parts = [];
  heldBytes = 0;
  for (const { at, sizeBytes, toFd, positionBytes } of held)
    for (let done = 0; done < sizeBytes; done += writeBytes)
      writeFully(toFd, at + done, Math.min(writeBytes, sizeBytes - done), positionBytes + done);
  return 0;
}

function paste({ fromFd, positionBytes, toFd, runs }: Paste): number {
  let position = positionBytes;
  // The file is read in large steps, whatever the runs' sizes.
  let loaded = { position, sizeBytes: 0 };
  const leftBytes = () => loaded.position + loaded.sizeBytes - position;
  for (let at = 0; at < runs.length; at += runFields) {
    const [address, sizeBytes] = [runs[at]!, runs[at + 2]!];
    for (let done = 0; done < sizeBytes; ) {
      if (leftBytes() === 0)
        loaded = { position, sizeBytes: readSync(fromFd, bytes, 0, scratchBytes, position) };
      const stepBytes = Math.min(sizeBytes - done, leftBytes());
      if (stepBytes <= 0) throw new Error('the file of changed pages is too short');
      writeFully(toFd, position - loaded.position, stepBytes, address + done);
      done += stepBytes;
      position += stepBytes;
    }
  }
  return 0;
}

function readFully(fd: number, at: number, sizeBytes: number, position: number): void {
  for (let done = 0; done < sizeBytes; ) {
    const readBytes = readSync(fd, bytes, at + done, sizeBytes - done, position + done);
    if (readBytes === 0) throw new Error(`nothing left to read at ${position + done}: the process has ended`);
    done += readBytes;
  }
}

function writeFully(fd: number, at: number, sizeBytes: number, position: number): void {
  for (let done = 0; done < sizeBytes; ) {
    const writtenBytes = writeSync(fd, bytes, at + done, sizeBytes - done, position + done);
    if (writtenBytes === 0)
      throw new Error(`nothing takes bytes at ${position + done}: the process has ended`);
    done += writtenBytes;
  }
}

function perform(work: CopierWork): number | Float64Array<ArrayBuffer> {
  switch (work.op) {
    case 'reserve':
      return reserve(work);
    case 'scan':
      return scan(work);
    case 'rehearse':
      return rehearse(work);
    case 'take':
      return take(work);
    case 'write':
      return write();
    case 'paste':
      return paste(work);
  }
}

parentPort!.on('message', (request: CopierRequest) => {
  const { id } = request;
  try {
    const value = perform(request);
    const transfer = typeof value === 'number' ? [] : [value.buffer];
    parentPort!.postMessage({ id, value } satisfies CopierReply, transfer);
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    parentPort!.postMessage({ id, code, message } satisfies CopierReply);
  }
});
