// Owns a node for tests of the gateway: it keeps the NodeClient contract over one real HTTP server that answers what it
// was asked, so that streams, aborts and upgrades are those of sockets. No VM, no snapshot.
// Invariant: only tests construct it; its answers depend on the request, never on what a test expects.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, errors } from 'undici';
import type { LogEvent, SandboxInit } from '../../shared/agent-protocol.ts';
import {
  type EgressAbility,
  type EgressRules,
  openEgress,
  reachesInternet,
  requireKeepable,
} from '../../shared/egress.ts';
import { type ErrorCode, ThawError } from '../../shared/errors.ts';
import { newSnapshotId, snapshotIdOf } from '../../shared/ids.ts';
import type {
  CaptureSandboxRequest,
  DeployRequest,
  EndpointRequest,
  FunctionVersion,
  GuestRequest,
  GuestResponse,
  NodeClient,
  SandboxFacts,
  SandboxRequest,
  SnapshotFacts,
  SnapshotVerification,
} from './node-client.ts';

interface SimulatedSandbox extends SandboxRequest {
  timer: NodeJS.Timeout | undefined;
}

/** What the echo server saw of a request, in its answer to /echo. */
export interface Echo {
  method: string;
  url: string;
  headers: IncomingMessage['headers'];
  rawHeaders: string[];
  bodySha256: string;
  bodyBytes: number;
}

const keyOf = ({ name, version }: Pick<FunctionVersion, 'name' | 'version'>) => `${name}@${version}`;

const baseSnapshotId = snapshotIdOf('b'.repeat(24));

const templateFacts = (snapshotId: string): SnapshotFacts => ({
  snapshotId,
  names: [],
  kind: 'template',
  sandboxId: null,
  parent: null,
  children: [],
  clones: 0,
  memoryMb: 512,
  vcpus: 2,
  sizeBytes: 512 * 1024 * 1024,
  uniqueBytes: 4096,
  here: true,
  stored: 'no',
  storedBytes: null,
  dirtyPages: 1,
  pauseMs: { pause: 1, total: 1 },
  compatibility: {},
  createdAt: new Date().toISOString(),
});

export class SimulatedNodeClient implements NodeClient {
  readonly served = new Map<string, FunctionVersion>();
  readonly sandboxes = new Map<string, SimulatedSandbox>();
  readonly retired: string[] = [];
  readonly snapshots: SnapshotFacts[] = [];
  /** What programs of sandboxes wrote, by sandbox. */
  readonly written = new Map<string, LogEvent[]>();
  /** What it pretends to be able to keep. */
  egress: EgressAbility = 'by-address';
  /** Ports that a sandbox listens on. */
  readonly openPorts = new Set([49983, 8000]);
  /** Requests that ended before their answer did, by path: what a guest sees of a lost client. */
  readonly aborted: string[] = [];
  /** Set to make the next calls of a method fail. */
  readonly failures = new Map<'deploy' | 'serve' | 'invoke' | 'createSandbox' | 'health', ThawError>();
  /** Awaited by `deploy` after its output, so that a test decides when a build ends. */
  buildGate: Promise<void> = Promise.resolve();
  buildOutput = 'building\n';
  readonly #server: Server;
  readonly #agent = new Agent({ connections: 64, pipelining: 1 });
  readonly #listeners: ((sandboxId: string, reason: string) => void)[] = [];
  readonly #expiryListeners: ((sandboxId: string) => void)[] = [];
  readonly #logs: LogEvent[] = [];
  #port = 0;

  constructor() {
    this.#server = createServer((request, response) => void this.#answer(request, response));
    this.#server.on('upgrade', echoUpgrade);
  }

  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    this.#port = (this.#server.address() as AddressInfo).port;
    return this;
  }

  async stop(): Promise<void> {
    for (const sandbox of this.sandboxes.values()) clearTimeout(sandbox.timer);
    await this.#agent.destroy();
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  async serve(version: FunctionVersion): Promise<{ snapshotId: string }> {
    this.#failWhenAsked('serve');
    this.served.set(keyOf(version), version);
    return { snapshotId: version.snapshotId };
  }

  async deploy(request: DeployRequest): Promise<{ snapshotId: string }> {
    request.onOutput?.(this.buildOutput);
    await this.buildGate;
    this.#failWhenAsked('deploy');
    const hash = createHash('sha256');
    await pipeline(createReadStream(request.bundlePath), hash);
    return { snapshotId: snapshotIdOf(hash.digest('hex')) };
  }

  /** As in a real one, nothing of the snapshot is needed any more when it returns. */
  async deployFromSnapshot(request: EndpointRequest): Promise<{ snapshotId: string }> {
    const { manifest, fromSnapshot } = request;
    const { port, command } = manifest;
    await this.buildGate;
    this.#failWhenAsked('deploy');
    await this.inspectSnapshot(fromSnapshot);
    if (command === undefined && !this.openPorts.has(port))
      throw new ThawError('start-failed', `nothing serves HTTP on port ${port}`);
    return { snapshotId: newSnapshotId() };
  }

  async retire(version: FunctionVersion): Promise<void> {
    this.served.delete(keyOf(version));
    this.retired.push(keyOf(version));
  }

  async invoke(version: FunctionVersion, request: GuestRequest): Promise<GuestResponse> {
    this.#failWhenAsked('invoke');
    if (!this.served.has(keyOf(version)))
      throw new ThawError('function-not-found', `${keyOf(version)} is not served here`);
    return this.#forward(request);
  }

  async upgrade(
    version: FunctionVersion,
    request: IncomingMessage,
    path: string,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    if (!this.served.has(keyOf(version))) throw new ThawError('function-not-found', 'not served');
    await this.#forwardUpgrade(request, path, socket, head);
  }

  log(event: LogEvent): void {
    this.#logs.push(event);
  }

  async *logs(_name: string, signal: AbortSignal): AsyncIterable<LogEvent> {
    yield* this.#logs;
    await new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      else signal.addEventListener('abort', () => resolve(), { once: true });
    });
  }

  pools(): Record<string, Record<string, number>> {
    return Object.fromEntries(
      [...this.served].map(([key, version]) => [key, { warm: version.manifest.warm.min }]),
    );
  }

  async resolveTemplate(templateId: string): Promise<{ snapshotId: string; alias: string | null }> {
    const saved = this.snapshots.find(
      ({ snapshotId, names }) => snapshotId === templateId || names.includes(templateId),
    );
    if (saved) return { snapshotId: saved.snapshotId, alias: saved.names[0] ?? null };
    if (templateId !== 'base')
      throw new ThawError('template-not-found', `no template ${JSON.stringify(templateId)}`);
    return { snapshotId: baseSnapshotId, alias: 'base' };
  }

  async baseOfSize({ memoryMb = 512, cpuCount = 2 }): Promise<{ snapshotId: string }> {
    return { snapshotId: snapshotIdOf(`${memoryMb}${cpuCount}`.padEnd(24, '0')) };
  }

  async setUpSandbox(sandboxId: string, init: SandboxInit): Promise<void> {
    const sandbox = this.sandboxes.get(sandboxId);
    if (sandbox === undefined) throw new ThawError('sandbox-not-found', 'no such sandbox');
    Object.assign(sandbox, init);
  }

  async createSandbox(request: SandboxRequest): Promise<SandboxFacts> {
    this.#failWhenAsked('createSandbox');
    const { reachesInternet } = this.#keep(request.egress ?? openEgress);
    this.sandboxes.set(request.sandboxId, { ...request, timer: undefined });
    this.setSandboxEnd(request.sandboxId, request.endAtMs);
    return { cpuCount: 2, memoryMb: 512, diskSizeMb: 1024, reachesInternet };
  }

  async setSandboxEgress(sandboxId: string, rules: EgressRules): Promise<{ reachesInternet: boolean }> {
    const sandbox = this.sandboxes.get(sandboxId);
    if (sandbox === undefined) throw new ThawError('sandbox-not-found', 'no such sandbox');
    const kept = this.#keep(rules);
    sandbox.egress = rules;
    return kept;
  }

  #keep(rules: EgressRules): { reachesInternet: boolean } {
    requireKeepable(this.egress, rules);
    return { reachesInternet: reachesInternet(this.egress, rules) };
  }

  async killSandbox(sandboxId: string): Promise<boolean> {
    clearTimeout(this.sandboxes.get(sandboxId)?.timer);
    return this.sandboxes.delete(sandboxId);
  }

  setSandboxEnd(sandboxId: string, endAtMs: number): void {
    const sandbox = this.sandboxes.get(sandboxId);
    if (sandbox === undefined) return;
    clearTimeout(sandbox.timer);
    sandbox.endAtMs = endAtMs;
    sandbox.timer = setTimeout(() => {
      if (sandbox.asksAtEnd) for (const listener of this.#expiryListeners) listener(sandboxId);
      else this.endSandbox(sandboxId, 'timeout');
    }, endAtMs - Date.now());
  }

  sandboxLog(sandboxId: string): readonly LogEvent[] {
    return this.written.get(sandboxId) ?? [];
  }

  endSandbox(sandboxId: string, reason: string): void {
    clearTimeout(this.sandboxes.get(sandboxId)?.timer);
    this.sandboxes.delete(sandboxId);
    for (const listener of this.#listeners) listener(sandboxId, reason);
  }

  onSandboxEnded(listener: (sandboxId: string, reason: string) => void): void {
    this.#listeners.push(listener);
  }

  onSandboxExpired(listener: (sandboxId: string) => void): void {
    this.#expiryListeners.push(listener);
  }

  async captureSandbox(sandboxId: string, request: CaptureSandboxRequest): Promise<SnapshotFacts> {
    const sandbox = this.sandboxes.get(sandboxId);
    if (sandbox === undefined) throw new ThawError('sandbox-not-found', 'no such sandbox');
    const { names, keepRunning } = request;
    if (names.some((name) => this.snapshots.some((known) => known.names.includes(name))))
      throw new ThawError('conflict', 'a snapshot of this name exists');
    const { snapshotId: parent } = sandbox;
    const facts = { ...templateFacts(newSnapshotId()), names, kind: 'sandbox' as const, sandboxId, parent };
    this.snapshots.unshift(facts);
    if (!keepRunning) await this.killSandbox(sandboxId);
    return facts;
  }

  async listSnapshots(): Promise<SnapshotFacts[]> {
    return this.snapshots;
  }

  async inspectSnapshot(idOrName: string): Promise<SnapshotFacts> {
    if (idOrName === baseSnapshotId) return templateFacts(baseSnapshotId);
    const found = this.snapshots.find(
      ({ snapshotId, names }) => snapshotId === idOrName || names.includes(idOrName),
    );
    if (found === undefined)
      throw new ThawError('template-not-found', `no snapshot ${JSON.stringify(idOrName)}`);
    return found;
  }

  async verifySnapshot(idOrName: string): Promise<SnapshotVerification> {
    const { snapshotId } = await this.inspectSnapshot(idOrName);
    const copy = { copy: 'local', units: 'files', checked: 1, bytes: 4096, damaged: [] } as const;
    return { snapshotId, copies: [{ ...copy, damaged: [] }] };
  }

  async removeSnapshot(idOrName: string): Promise<void> {
    this.snapshots.splice(this.snapshots.indexOf(await this.inspectSnapshot(idOrName)), 1);
  }

  async sandboxRequest(sandboxId: string, port: number, request: GuestRequest): Promise<GuestResponse> {
    this.#requirePort(sandboxId, port);
    return this.#forward(request);
  }

  async sandboxUpgrade(
    sandboxId: string,
    port: number,
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    this.#requirePort(sandboxId, port);
    await this.#forwardUpgrade(request, request.url!, socket, head);
  }

  async health() {
    this.#failWhenAsked('health');
    return { ready: true, hypervisor: 'simulated', vms: {}, notes: [] };
  }

  async drain(): Promise<void> {}

  #failWhenAsked(method: 'deploy' | 'serve' | 'invoke' | 'createSandbox' | 'health'): void {
    const failure = this.failures.get(method);
    if (failure) throw failure;
  }

  #requirePort(sandboxId: string, port: number): void {
    if (!this.sandboxes.has(sandboxId)) throw new ThawError('sandbox-not-found', 'no such sandbox');
    if (!this.openPorts.has(port)) throw new ThawError('guest-unreachable', `port ${port} is closed`);
  }

  async #forward(request: GuestRequest): Promise<GuestResponse> {
    const startedAtMs = performance.now();
    const { method, path, headers, body, signal, timeoutMs } = request;
    try {
      const answer = await this.#agent.request({
        origin: `http://127.0.0.1:${this.#port}`,
        method: method as 'GET',
        path,
        headers,
        body,
        signal,
        headersTimeout: timeoutMs,
        bodyTimeout: 0,
      });
      return {
        status: answer.statusCode,
        headers: answer.headers as Record<string, string | string[]>,
        body: answer.body,
        tier: 'warm',
        stages: { queueMs: 0, leaseMs: 0.1, execMs: performance.now() - startedAtMs },
      };
    } catch (error) {
      throw new ThawError(codeOf(error), (error as Error).message, { cause: error });
    }
  }

  async #forwardUpgrade(request: IncomingMessage, path: string, socket: Duplex, head: Buffer): Promise<void> {
    const guest = connect(this.#port, '127.0.0.1');
    const lines = [`${request.method} ${path} HTTP/1.1`];
    for (let at = 0; at < request.rawHeaders.length; at += 2)
      lines.push(`${request.rawHeaders[at]}: ${request.rawHeaders[at + 1]}`);
    guest.write(`${lines.join('\r\n')}\r\n\r\n`);
    guest.write(head);
    guest.on('error', () => socket.destroy());
    socket.on('error', () => guest.destroy());
    socket.on('close', () => guest.destroy());
    guest.pipe(socket);
    socket.pipe(guest);
  }

  /** The routes of the guest: the path says what to do. */
  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('close', () => {
      if (!response.writableFinished) this.aborted.push(request.url!);
    });
    const url = new URL(request.url!, 'http://guest');
    const wait = Number(url.searchParams.get('waitMs') ?? 0);
    if (wait > 0) await delay(wait);
    if (url.pathname === '/pipe') return void request.pipe(response);
    if (url.pathname === '/never') return;
    if (url.pathname === '/flood') return sendFlood(response, Number(url.searchParams.get('bytes')));
    if (url.pathname === '/events') return sendSlowEvents(response);
    if (url.pathname === '/cut') return cutShort(response);
    if (url.pathname === '/answer') return sendAsAsked(url, response);
    await sendEcho(request, response);
  }
}

const codeOf = (error: unknown): ErrorCode =>
  error instanceof errors.HeadersTimeoutError ? 'deadline-exceeded' : 'vm-died';

async function sendEcho(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const hash = createHash('sha256');
  let bodyBytes = 0;
  for await (const chunk of request) {
    hash.update(chunk);
    bodyBytes += chunk.length;
  }
  const { method, url, headers, rawHeaders } = request;
  const echo: Echo = {
    method: method!,
    url: url!,
    headers,
    rawHeaders,
    bodySha256: hash.digest('hex'),
    bodyBytes,
  };
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(echo));
}

/** /answer?status=…&h=name:value&h=… */
function sendAsAsked(url: URL, response: ServerResponse): void {
  const headers = url.searchParams.getAll('h').flatMap((line) => {
    const colon = line.indexOf(':');
    return [line.slice(0, colon), line.slice(colon + 1)];
  });
  response.writeHead(Number(url.searchParams.get('status') ?? 200), headers);
  response.end(url.searchParams.get('body') ?? '');
}

async function sendFlood(response: ServerResponse, totalBytes: number): Promise<void> {
  const chunk = Buffer.alloc(64 * 1024, 'x');
  response.setHeader('content-type', 'application/octet-stream');
  for (let sentBytes = 0; sentBytes < totalBytes && !response.destroyed; sentBytes += chunk.length)
    if (!response.write(chunk.subarray(0, totalBytes - sentBytes))) await drainedOrClosed(response);
  response.end();
}

function drainedOrClosed(response: ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const settle = () => {
      response.off('drain', settle);
      response.off('close', settle);
      resolve();
    };
    response.on('drain', settle);
    response.on('close', settle);
  });
}

async function sendSlowEvents(response: ServerResponse): Promise<void> {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.flushHeaders();
  for (let count = 0; count < 3; count++) {
    await delay(30);
    response.write(`data: ${count}\n\n`);
  }
  response.end();
}

function cutShort(response: ServerResponse): void {
  response.writeHead(200, { 'content-length': '1000' });
  response.write('half', () => response.destroy());
}

/** Answers any upgrade and sends back what it gets, prefixed with the path and the headers it saw. */
function echoUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
  socket.on('error', () => socket.destroy());
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nupgrade: ${request.headers.upgrade}\r\nconnection: Upgrade\r\n\r\n`,
  );
  socket.write(`${JSON.stringify({ url: request.url, headers: request.headers })}\n`);
  if (head.length > 0) socket.write(head);
  socket.pipe(socket);
}
