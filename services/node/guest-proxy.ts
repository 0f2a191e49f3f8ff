// Owns carrying one HTTP exchange to an address inside a VM: streamed both ways, ended by whoever ends first.
// Refuses to own how leases end, and retries (invocations.ts, node-sandboxes.ts).
// Invariant: what it throws says whether the guest may have seen the request; nothing is buffered.
import type { IncomingMessage } from 'node:http';
import { connect } from 'node:net';
import type { Duplex, Readable } from 'node:stream';
import { connect as connectTls } from 'node:tls';
import { type Dispatcher, errors } from 'undici';
import type { Lease } from '../../pool/lease.ts';
import { ThawError } from '../../shared/errors.ts';
import type { GuestRequest } from '../gateway/node-client.ts';

export interface GuestAnswer {
  status: number;
  headers: Record<string, string | string[]>;
  body: Readable;
  /** Dispatch to response headers, milliseconds. */
  execMs: number;
}

/** The guest did not get the request: another VM may have it. */
export class NotDispatchedError extends ThawError {
  constructor(cause: unknown) {
    super('guest-unreachable', 'the guest did not accept the connection', { cause });
  }
}

/**
 * @param vmSignal aborts with the reason when the VM is lost.
 * @throws NotDispatchedError | ThawError `deadline-exceeded` | `guest-unreachable` | `guest-hung-up`, or a signal's reason.
 */
export async function exchange(
  dispatcher: Dispatcher,
  origin: string,
  request: GuestRequest,
  timeoutMs: number,
  vmSignal?: AbortSignal,
): Promise<GuestAnswer> {
  const startedAtMs = performance.now();
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(tooLate(request.timeoutMs)), timeoutMs);
  const unlink = [link(request.signal, controller), vmSignal ? link(vmSignal, controller) : () => {}];
  try {
    const { statusCode, headers, body } = await dispatcher.request({
      origin,
      method: request.method as Dispatcher.HttpMethod,
      path: request.path,
      headers: request.headers,
      body: request.body,
      signal: controller.signal,
      headersTimeout: 0,
      bodyTimeout: 0,
    });
    clearTimeout(timer);
    body.once('close', () => {
      for (const undo of unlink) undo();
    });
    return {
      status: statusCode,
      headers: headers as Record<string, string | string[]>,
      body,
      execMs: performance.now() - startedAtMs,
    };
  } catch (error) {
    clearTimeout(timer);
    for (const undo of unlink) undo();
    throw controller.signal.aborted ? controller.signal.reason : failureOf(error);
  }
}

/** The other way round than AbortSignal.any, which costs more than all the rest of a warm request. */
function link(signal: AbortSignal, controller: AbortController): () => void {
  if (signal.aborted) controller.abort(signal.reason);
  const onAbort = () => controller.abort(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  return () => signal.removeEventListener('abort', onAbort);
}

const tooLate = (timeoutMs: number) => new ThawError('deadline-exceeded', `no answer within ${timeoutMs} ms`);

function failureOf(error: unknown): Error {
  const { code } = error as NodeJS.ErrnoException;
  if (code === 'ECONNREFUSED' || error instanceof errors.ConnectTimeoutError)
    return new NotDispatchedError(error);
  if (error instanceof errors.InvalidArgumentError)
    return new ThawError('bad-request', `the request cannot be passed on: ${error.message}`, {
      cause: error,
    });
  // A user network accepts for a port that is closed, and hangs up: only what has answered before was open.
  const served = error instanceof errors.SocketError && (error.socket?.bytesRead ?? 0) > 0;
  return new ThawError(
    served ? 'guest-hung-up' : 'guest-unreachable',
    `the guest ended the connection: ${(error as Error).message}`,
    { cause: error },
  );
}

/** How soon after a broken connection its VM's end must show to be blamed for it. */
const blameMs = 100;

/** A broken connection is the first sign of a VM that ended; its exit follows. */
export async function blamed(error: unknown, lease: Lease): Promise<unknown> {
  if (!(error instanceof ThawError) || !broken.has(error.code)) return error;
  let timer: NodeJS.Timeout | undefined;
  const expiry = new Promise<undefined>((resolve) => {
    timer = setTimeout(() => resolve(undefined), blameMs);
  });
  const reason = lease.vmEnded ?? (await Promise.race([lease.vm.ended, expiry]));
  clearTimeout(timer);
  return reason === undefined ? error : new ThawError('vm-died', `the VM ended: ${reason}`, { cause: error });
}

const broken = new Set<string>(['guest-unreachable', 'guest-hung-up']);

/** Hands an upgrade to the guest and joins the two connections. Resolves when both have ended. @throws NotDispatchedError. */
export async function joinUpgrade(
  address: { host: string; port: number; tls?: boolean },
  request: IncomingMessage,
  path: string,
  client: Duplex,
  head: Buffer,
  connectTimeoutMs: number,
): Promise<void> {
  const { host, port } = address;
  const guest = address.tls ? connectTls({ host, port, rejectUnauthorized: false }) : connect(port, host);
  await new Promise<void>((resolve, reject) => {
    guest.setTimeout(connectTimeoutMs, () => guest.destroy(tooLate(connectTimeoutMs)));
    guest.once(address.tls ? 'secureConnect' : 'connect', resolve);
    guest.once('error', (error) => reject(new NotDispatchedError(error)));
  });
  guest.setTimeout(0).setNoDelay(true);
  const lines = [`${request.method} ${path} HTTP/1.1`];
  for (let at = 0; at < request.rawHeaders.length; at += 2)
    lines.push(`${request.rawHeaders[at]}: ${request.rawHeaders[at + 1]}`);
  guest.write(`${lines.join('\r\n')}\r\n\r\n`);
  if (head.length > 0) guest.write(head);
  const ended = Promise.all([closed(guest), closed(client)]);
  guest.on('error', () => client.destroy()).on('close', () => client.end());
  client.on('error', () => guest.destroy()).on('close', () => guest.destroy());
  guest.pipe(client);
  client.pipe(guest);
  await ended;
}

const closed = (stream: Duplex): Promise<void> =>
  stream.closed ? Promise.resolve() : new Promise((resolve) => stream.once('close', () => resolve()));
