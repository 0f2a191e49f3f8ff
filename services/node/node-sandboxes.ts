// Owns the sandboxes that run on this node: a lease each, its timer, and requests to its ports.
// Refuses to own records and ids (the gateway). Invariant: a sandbox is in the table exactly while it holds its lease;
// whatever ends it tells the listener once, but for a kill that was asked for.
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { Agent } from 'undici';
import type { Lease } from '../../pool/lease.ts';
import type { Pool } from '../../pool/pool.ts';
import type { Vm } from '../../pool/vm.ts';
import { agentPort, type LogEvent, type SandboxInit, secretHeader } from '../../shared/agent-protocol.ts';
import type { EgressRules } from '../../shared/egress.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { GuestRequest, GuestResponse, SandboxRequest } from '../gateway/node-client.ts';
import { blamed, exchange, joinUpgrade } from './guest-proxy.ts';

/** How long a create waits for a VM. Under emulation a burst of creates restores one after the other. */
const acquireTimeoutMs = 60_000;
const initTimeoutMs = 10_000;
/** Each port that was ever asked for holds a host port while the sandbox lives. */
const maxPorts = 128;
const upgradeTimeoutMs = 30_000;
const maxLogLines = 500;

export interface RunningSandbox {
  readonly sandboxId: string;
  readonly snapshotId: string;
  readonly lease: Lease;
  /** Connections to all its ports. */
  readonly connections: Agent;
  readonly ports: Map<number, Promise<{ host: string; port: number }>>;
  readonly asksAtEnd: boolean;
  /** Ports that speak TLS. */
  readonly tlsPorts: ReadonlySet<number>;
  /** What its programs wrote lately. */
  readonly log: LogEvent[];
  endAtMs: number;
  timer: NodeJS.Timeout | undefined;
}

export class NodeSandboxes {
  readonly #pool: Pool;
  readonly #log: Log;
  readonly #running = new Map<string, RunningSandbox>();
  readonly #listeners: ((sandboxId: string, reason: string) => void)[] = [];
  readonly #expiryListeners: ((sandboxId: string) => void)[] = [];

  constructor(pool: Pool, log: Log) {
    this.#pool = pool;
    this.#log = log;
  }

  onEnded(listener: (sandboxId: string, reason: string) => void): void {
    this.#listeners.push(listener);
  }

  onExpired(listener: (sandboxId: string) => void): void {
    this.#expiryListeners.push(listener);
  }

  /** @throws ThawError `no-capacity` | `restore-failed` | `overloaded` | `guest-unreachable`. */
  async create(request: SandboxRequest): Promise<RunningSandbox> {
    const lease = await this.#pool.acquire(request.snapshotId, { timeoutMs: acquireTimeoutMs });
    const connections = new Agent({
      keepAliveTimeout: 600_000,
      keepAliveMaxTimeout: 600_000,
      pipelining: 1,
      // What speaks TLS in a guest has a certificate of its own making; the way there is this host's.
      connect: { rejectUnauthorized: false },
    });
    const { sandboxId, snapshotId, endAtMs } = request;
    const ports = new Map([[agentPort, Promise.resolve(lease.vm.agent)]]);
    const asksAtEnd = request.asksAtEnd ?? false;
    const sandbox = {
      sandboxId,
      snapshotId,
      lease,
      connections,
      ports,
      asksAtEnd,
      tlsPorts: new Set(request.httpsPorts),
      log: logOf(lease.vm),
      endAtMs,
      timer: undefined,
    };
    try {
      const { egress, accessToken, envVars } = request;
      await Promise.all([
        egress && keepEgress(lease.vm, egress),
        initialise(sandbox, { accessToken, envVars }),
      ]);
    } catch (error) {
      lease.discard();
      void connections.destroy();
      throw error;
    }
    this.#running.set(sandboxId, sandbox);
    this.setEnd(sandboxId, endAtMs);
    lease.signal.addEventListener('abort', () => this.#ended(sandboxId, lease.vmEnded ?? 'its VM ended'));
    if (!lease.active) this.#ended(sandboxId, 'its VM ended');
    return sandbox;
  }

  /** What programs and calls start with from now on, in it and in its clones. @throws ThawError `sandbox-not-found`. */
  async setUp(sandboxId: string, init: SandboxInit): Promise<void> {
    await initialise(this.get(sandboxId), init);
  }

  /** @returns false when no such sandbox runs here. */
  kill(sandboxId: string): boolean {
    const sandbox = this.#take(sandboxId);
    sandbox?.lease.discard();
    return sandbox !== undefined;
  }

  setEnd(sandboxId: string, endAtMs: number): void {
    const sandbox = this.#running.get(sandboxId);
    if (!sandbox) return;
    clearTimeout(sandbox.timer);
    sandbox.endAtMs = endAtMs;
    sandbox.timer = setTimeout(() => this.#expired(sandbox), Math.max(0, endAtMs - Date.now()));
  }

  #expired({ sandboxId, asksAtEnd }: RunningSandbox): void {
    if (asksAtEnd) for (const listener of this.#expiryListeners) listener(sandboxId);
    else this.#ended(sandboxId, 'its time was over');
  }

  has(sandboxId: string): boolean {
    return this.#running.has(sandboxId);
  }

  /** @throws ThawError `sandbox-not-found`. */
  get(sandboxId: string): RunningSandbox {
    const sandbox = this.#running.get(sandboxId);
    if (!sandbox) throw new ThawError('sandbox-not-found', 'the sandbox was not found');
    return sandbox;
  }

  async request(sandboxId: string, guestPort: number, request: GuestRequest): Promise<GuestResponse> {
    const sandbox = this.get(sandboxId);
    const { host, port } = await addressOf(sandbox, guestPort);
    const { connections, lease, tlsPorts } = sandbox;
    const scheme = tlsPorts.has(guestPort) ? 'https' : 'http';
    const origin = `${scheme}://${host}:${port}`;
    const answer = await exchange(connections, origin, request, request.timeoutMs, lease.signal).catch(
      async (error: unknown) => {
        // A port that is closed is asked again and again until it opens: nobody waits for a VM's end there.
        throw isHungUp(error) ? await blamed(error, lease) : error;
      },
    );
    const stages = { queueMs: 0, leaseMs: 0, execMs: answer.execMs };
    return { status: answer.status, headers: answer.headers, body: answer.body, tier: lease.tier, stages };
  }

  async upgrade(
    sandboxId: string,
    guestPort: number,
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    const sandbox = this.get(sandboxId);
    const address = { ...(await addressOf(sandbox, guestPort)), tls: sandbox.tlsPorts.has(guestPort) };
    sandbox.lease.signal.addEventListener('abort', () => socket.destroy(), { once: true });
    await joinUpgrade(address, request, request.url!, socket, head, upgradeTimeoutMs);
  }

  /** Ends every sandbox, telling the listener. */
  endAll(reason: string): void {
    for (const sandboxId of [...this.#running.keys()]) this.#ended(sandboxId, reason);
  }

  #ended(sandboxId: string, reason: string): void {
    const sandbox = this.#take(sandboxId);
    if (!sandbox) return;
    sandbox.lease.discard();
    this.#log.info({ sandboxId, reason }, 'a sandbox ended');
    for (const listener of this.#listeners) listener(sandboxId, reason);
  }

  #take(sandboxId: string): RunningSandbox | undefined {
    const sandbox = this.#running.get(sandboxId);
    if (!sandbox) return undefined;
    this.#running.delete(sandboxId);
    clearTimeout(sandbox.timer);
    void sandbox.connections.destroy();
    return sandbox;
  }
}

const isHungUp = (error: unknown): boolean => error instanceof ThawError && error.code === 'guest-hung-up';

/** @throws ThawError `hypervisor-failed` for a VM without a filter: rules must not be believed that nobody keeps. */
export async function keepEgress(vm: Vm, rules: EgressRules): Promise<void> {
  if (!vm.setEgress) throw new ThawError('hypervisor-failed', 'this VM has no filter for what it may reach');
  await vm.setEgress(rules);
}

function logOf(vm: Vm): LogEvent[] {
  const lines: LogEvent[] = [];
  vm.onEvent((event) => {
    if (event.event !== 'log') return;
    lines.push(event);
    if (lines.length > maxLogLines) lines.shift();
  });
  return lines;
}

/** @throws ThawError `overloaded` past the number of ports that one sandbox may have. */
function addressOf(
  { lease, ports }: RunningSandbox,
  guestPort: number,
): Promise<{ host: string; port: number }> {
  const known = ports.get(guestPort);
  if (known) return known;
  if (ports.size >= maxPorts)
    throw new ThawError('overloaded', `a sandbox serves at most ${maxPorts} different ports`);
  const found = lease.vm.addressOf(guestPort);
  ports.set(guestPort, found);
  found.catch(() => ports.delete(guestPort));
  return found;
}

async function initialise({ connections, lease }: RunningSandbox, init: SandboxInit): Promise<void> {
  const { host, port } = lease.vm.agent;
  const answer = await connections.request({
    origin: `http://${host}:${port}`,
    method: 'POST',
    path: '/_thaw/init',
    headers: { 'content-type': 'application/json', [secretHeader]: lease.vm.secret },
    body: JSON.stringify(init),
    headersTimeout: initTimeoutMs,
    bodyTimeout: initTimeoutMs,
  });
  await answer.body.dump();
  if (answer.statusCode !== 204)
    throw new ThawError(
      'guest-unreachable',
      `the agent refused the sandbox's settings: ${answer.statusCode}`,
    );
}
