// Owns making a function version out of a snapshot: a clone of it, its server found or started and called from outside,
// and the clone saved as the version's own snapshot.
// Refuses to own serving it. Invariant: what it returns has answered and shares nothing with the snapshot it came from but
// content: that one may be removed. A failure leaves no VM and no snapshot.
import { AgentClient } from '../../pool/guest/agent-client.ts';
import { prime } from '../../pool/guest/runner-client.ts';
import type { Pool } from '../../pool/pool.ts';
import type { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import type { Vm } from '../../pool/vm.ts';
import type { RunnerSpec } from '../../shared/agent-protocol.ts';
import { ThawError } from '../../shared/errors.ts';
import type { EndpointRequest } from '../gateway/node-client.ts';

/** The clone of a snapshot that is over a base is restored anew, as for a sandbox. */
const acquireTimeoutMs = 60_000;
/** A command may install, compile and warm up. */
const startTimeoutMs = 120_000;
/** What listened when the snapshot was taken listens at once; a program that had just begun needs a moment. */
const findTimeoutMs = 10_000;

/** @param snapshotId known to the pool. @throws ThawError `no-capacity` | `restore-failed` | `start-failed` naming the port. */
export async function buildEndpoint(
  { pool, library }: { pool: Pool; library: SnapshotLibrary },
  snapshotId: string,
  request: EndpointRequest,
): Promise<string> {
  const { manifest, signal = new AbortController().signal } = request;
  const lease = await pool.acquire(snapshotId, { timeoutMs: acquireTimeoutMs, signal });
  try {
    await startServer(lease.vm, { ...request, signal });
    await callFromOutside(lease.vm, request, signal);
    const record = await lease.vm.capture({ resume: false, prime: manifest.prime, signal });
    return await finish(library, record.snapshotId, signal);
  } finally {
    lease.discard();
  }
}

/** The agent remembers the port: it is that of the function in every clone. */
async function startServer(vm: Vm, request: EndpointRequest & { signal: AbortSignal }): Promise<void> {
  const { manifest, signal, onOutput } = request;
  const { port, command, env } = manifest;
  const spec: RunnerSpec = command
    ? { runtime: 'command', command, port, env, place: 'home', startTimeoutMs }
    : { runtime: 'listening', port, env: {}, startTimeoutMs: findTimeoutMs };
  const agent = new AgentClient(vm.agent, vm.secret);
  try {
    await agent.startRunner(spec, signal, onOutput);
  } catch (error) {
    if (!(error instanceof ThawError) || error.code !== 'start-failed') throw error;
    throw new ThawError('start-failed', `${error.message}\n${adviceOf(request)}`, { cause: error });
  } finally {
    await agent.close();
  }
}

async function callFromOutside(vm: Vm, request: EndpointRequest, signal: AbortSignal): Promise<void> {
  const { port, prime: paths, timeoutMs } = request.manifest;
  const address = await vm.addressOf(port);
  try {
    await prime(address, paths, timeoutMs, signal);
  } catch (error) {
    signal.throwIfAborted();
    const why = (error as Error).message;
    throw new ThawError(
      'start-failed',
      `port ${port} answers inside the VM and not from outside: ${why}; the server must listen on 0.0.0.0, not only on 127.0.0.1`,
      { cause: error },
    );
  }
}

const adviceOf = ({ fromSnapshot, manifest: { port, command } }: EndpointRequest): string =>
  command
    ? `the command must end up as an HTTP server on 0.0.0.0:${port} (also given as $PORT)`
    : `nothing serves HTTP on port ${port} in a clone of ${fromSnapshot}: start a server on 0.0.0.0:${port} before the snapshot is taken, name its port, or give the command that starts it`;

/** A page file of its own: the clones of a version share it. */
async function finish(library: SnapshotLibrary, snapshotId: string, signal: AbortSignal): Promise<string> {
  try {
    await library.materialise(snapshotId);
    signal.throwIfAborted();
    library.added(await library.record(snapshotId));
    return snapshotId;
  } catch (error) {
    await library.remove(snapshotId);
    throw error;
  }
}
