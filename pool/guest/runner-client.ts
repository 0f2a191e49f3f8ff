// Owns the host's calls to a guest's runner and agent that are not a user's request: prime and wait for an answer.
// Invariant: bodies are drained and bounded; a guest cannot make the host hold what it sends.
import { Pool as Connections, type Dispatcher, request } from 'undici';
import { ThawError } from '../../shared/errors.ts';
import type { Address } from '../hypervisor/hypervisor.ts';

export type { Connections };

/** Kept for the VM's whole life: a guest's first connection costs more than all later requests on it. */
const connectionIdleMs = 86_400_000;

export const connectionsTo = ({ host, port }: Address): Connections =>
  new Connections(`http://${host}:${port}`, {
    connections: null,
    keepAliveTimeout: connectionIdleMs,
    keepAliveMaxTimeout: connectionIdleMs,
  });

/** Calls each path once; any HTTP status counts as an answer. @throws ThawError `guest-unreachable`. */
export async function prime(
  address: Address,
  paths: readonly string[],
  timeoutMs: number,
  signal?: AbortSignal,
  dispatcher?: Dispatcher,
): Promise<void> {
  for (const path of paths) {
    const deadline = AbortSignal.timeout(timeoutMs);
    try {
      const response = await request(`http://${address.host}:${address.port}${path}`, {
        headers: { 'x-thaw-prime': '1' },
        // Kept open for nobody: another VM may have this address next, and would be asked on a dead connection.
        ...(dispatcher ? { dispatcher } : { reset: true }),
        signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
        headersTimeout: timeoutMs,
        bodyTimeout: timeoutMs,
      });
      // Only the first bytes: an endless stream has answered too.
      await response.body.dump({ limit: 64 * 1024 });
    } catch (error) {
      throw new ThawError('guest-unreachable', `${path} did not answer: ${(error as Error).message}`, {
        cause: error,
      });
    }
  }
}
