// Owns one function request on this node: a lease, the exchange with the runner, and what becomes of the VM.
// Refuses to own which version is meant (the gateway) and when VMs are made (the pool).
// Invariant: a request that a guest may have seen is never given to a second one; every lease ends with its exchange.
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Lease } from '../../pool/lease.ts';
import type { Pool } from '../../pool/pool.ts';
import { ThawError } from '../../shared/errors.ts';
import type { FunctionVersion, GuestRequest, GuestResponse } from '../gateway/node-client.ts';
import { blamed, exchange, joinUpgrade, NotDispatchedError } from './guest-proxy.ts';

export class Invocations {
  readonly #pool: Pool;

  constructor(pool: Pool) {
    this.#pool = pool;
  }

  async invoke(version: FunctionVersion, request: GuestRequest): Promise<GuestResponse> {
    const startedAtMs = performance.now();
    for (let isFirstTry = true; ; isFirstTry = false) {
      const leftMs = request.timeoutMs - (performance.now() - startedAtMs);
      const lease = await this.#acquire(version, leftMs, request.signal);
      const leaseMs = performance.now() - startedAtMs;
      try {
        return await this.#exchange(lease, request, request.timeoutMs - leaseMs, leaseMs);
      } catch (error) {
        const unseen = error instanceof NotDispatchedError && !request.body?.readableDidRead;
        if (!isFirstTry || !unseen) throw await blamed(error, lease);
      }
    }
  }

  async #exchange(
    lease: Lease,
    request: GuestRequest,
    timeoutMs: number,
    leaseMs: number,
  ): Promise<GuestResponse> {
    const { vm, tier } = lease;
    try {
      const answer = await exchange(
        vm.runnerConnections!,
        vm.runnerOrigin!,
        request,
        timeoutMs,
        lease.signal,
      );
      answer.body.once('close', () => lease.release());
      const waited = tier !== 'warm' || lease.waitedMs > 1;
      return {
        status: answer.status,
        headers: answer.headers,
        body: answer.body,
        tier,
        stages: {
          queueMs: waited ? leaseMs : 0,
          leaseMs: waited ? 0 : leaseMs,
          execMs: answer.execMs,
        },
      };
    } catch (error) {
      // A client that left says nothing of the VM; every other failure makes it unfit.
      if (request.signal.aborted) lease.release();
      else lease.discard();
      throw error;
    }
  }

  async upgrade(
    version: FunctionVersion,
    request: IncomingMessage,
    path: string,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    const { timeoutMs } = version.manifest;
    const gone = new AbortController();
    const onClose = () => gone.abort(new ThawError('guest-unreachable', 'the client is gone'));
    socket.once('close', onClose);
    const lease = await this.#acquire(version, timeoutMs, gone.signal);
    try {
      const joined = joinUpgrade(lease.vm.runner!, request, path, socket, head, timeoutMs);
      lease.signal.addEventListener('abort', () => socket.destroy(), { once: true });
      await joined;
      lease.release();
    } catch (error) {
      lease.discard();
      throw error;
    } finally {
      socket.off('close', onClose);
    }
  }

  async #acquire(version: FunctionVersion, timeoutMs: number, signal: AbortSignal): Promise<Lease> {
    try {
      return await this.#pool.acquire(version.snapshotId, { timeoutMs, signal });
    } catch (error) {
      if (!(error instanceof ThawError) || error.code !== 'template-not-found') throw error;
      throw new ThawError('function-not-found', `${version.name}@${version.version} is not served here`);
    }
  }
}
