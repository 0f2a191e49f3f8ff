// Owns a real agent process in process mode for the tests: started, spoken to, ended, its directory removed.
// Invariant: disposing leaves no process and no file.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Sandbox } from 'e2b';
import {
  type ControlEvent,
  type RestoreReply,
  type RunnerProgress,
  type RunnerSpec,
  secretHeader,
} from '../../shared/agent-protocol.ts';
import { encodeFrame, endFlag, type Frame, FrameDecoder } from '../../shared/connect-frames.ts';
import { withDeadline } from '../../shared/deadline.ts';

const deadlineMs = 20_000;

// biome-ignore lint/suspicious/noExplicitAny: a message of any service, whose fields the tests name
export type StreamMessage = any;

export interface StreamResult {
  frames: Frame[];
  messages: StreamMessage[];
  /** The last frame's message; undefined when the reader left before. */
  end: { error?: { code: string; message: string } } | undefined;
}

export class AgentFixture {
  readonly rootDir: string;
  readonly secret = randomBytes(32).toString('hex');
  readonly accessToken = randomBytes(16).toString('hex');
  readonly events: ControlEvent[] = [];
  readonly #pending = new Map<number, (reply: Record<string, unknown>) => void>();
  #child: ChildProcess | undefined;
  #control: Socket | undefined;
  #nextId = 1;
  ports: RestoreReply['ports'] = { agent: 0, runner: 0 };

  constructor(rootDir: string) {
    this.rootDir = rootDir;
  }

  /** Boots, restores and makes it a sandbox unless told to stop earlier. */
  static async start(until: 'booted' | 'ready' | 'sandbox' = 'sandbox'): Promise<AgentFixture> {
    const fixture = new AgentFixture(await mkdtemp(join(tmpdir(), 'thaw-agent-')));
    try {
      await fixture.boot();
      if (until !== 'booted') await fixture.restore();
      if (until === 'sandbox') await fixture.init();
      return fixture;
    } catch (error) {
      await fixture[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** A ready sandbox, and the directory that its relative paths are of. */
  static async startWithHome(): Promise<[agent: AgentFixture, home: string]> {
    const agent = await AgentFixture.start();
    const home = join(agent.rootDir, 'home');
    await mkdir(home, { recursive: true });
    return [agent, home];
  }

  /** A mounted file system of 64 KiB and 20 entries, or undefined where this user may not mount. */
  async tinyFileSystem(): Promise<string | undefined> {
    const path = join(this.rootDir, 'full');
    await mkdir(path);
    const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k,nr_inodes=20', 'tmpfs', path]);
    return mounted.status === 0 ? path : undefined;
  }

  get origin(): string {
    return `http://127.0.0.1:${this.ports.agent}`;
  }

  get pid(): number {
    return this.#child!.pid!;
  }

  async boot(): Promise<void> {
    const socketPath = join(this.rootDir, 'control.sock');
    await rm(socketPath, { force: true });
    // The same tests run against a bundled agent when THAW_TEST_AGENT names one.
    const program = process.env.THAW_TEST_AGENT ?? join(import.meta.dirname, 'main.ts');
    this.#child = spawn(process.execPath, [program], {
      stdio: ['ignore', 'inherit', 'inherit'],
      env: {
        ...process.env,
        THAW_AGENT_MODE: 'process',
        THAW_AGENT_CONTROL: socketPath,
        THAW_AGENT_ROOT: this.rootDir,
        THAW_AGENT_PORT: '0',
      },
    });
    this.#control = await connectWhenThere(socketPath, this.#child);
    let partial = '';
    this.#control.setEncoding('utf8').on('data', (text) => {
      const lines = (partial + text).split('\n');
      partial = lines.pop()!;
      for (const line of lines) this.#receive(JSON.parse(line));
    });
  }

  async request(command: Record<string, unknown>): Promise<Record<string, unknown>> {
    const id = this.#nextId++;
    const reply = new Promise<Record<string, unknown>>((resolve) => this.#pending.set(id, resolve));
    this.#control!.write(`${JSON.stringify({ id, ...command })}\n`);
    return await withDeadline(`reply to ${command.op}`, deadlineMs, reply);
  }

  async restore(over: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    const reply = await this.request({
      op: 'restore',
      generation: randomBytes(8).toString('hex'),
      seed: randomBytes(64).toString('base64'),
      wallClockMs: Date.now(),
      hostname: 'vm-test',
      machineId: randomBytes(16).toString('hex'),
      secret: this.secret,
      ...over,
    });
    if (reply.ok) this.ports = (reply as unknown as RestoreReply).ports;
    return reply;
  }

  async init(over: Record<string, unknown> = {}): Promise<void> {
    const init = {
      accessToken: this.accessToken,
      envVars: { FROM_INIT: 'yes' },
      defaultUser: 'user',
      ...over,
    };
    const response = await this.internal('POST', '/_thaw/init', JSON.stringify(init));
    assert.equal(response.status, 204, await response.text());
  }

  internal(method: string, path: string, body: string | Uint8Array<ArrayBuffer>): Promise<Response> {
    return fetch(this.origin + path, { method, body, headers: { [secretHeader]: this.secret } });
  }

  /** @returns the last progress and all output before it. */
  async startRunner(spec: Partial<RunnerSpec>): Promise<{ outcome: RunnerProgress; output: string }> {
    const body = JSON.stringify({ env: {}, startTimeoutMs: 15_000, ...spec });
    const response = await this.internal('POST', '/_thaw/runner', body);
    assert.equal(response.status, 200);
    const lines = (await response.text()).trim().split('\n');
    const progress = lines.map((line) => JSON.parse(line) as RunnerProgress);
    const outcome = progress.pop()!;
    if (outcome.type === 'ready') this.ports.runner = outcome.port;
    return { outcome, output: progress.map((step) => (step.type === 'output' ? step.text : '')).join('') };
  }

  fetch(path: string, init: RequestInit = {}): Promise<Response> {
    return fetch(this.origin + path, {
      ...init,
      headers: { 'x-access-token': this.accessToken, ...init.headers },
    });
  }

  async unary(method: string, message: object, headers: Record<string, string> = {}) {
    const response = await this.fetch(`/${method}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(message),
    });
    return { status: response.status, body: (await response.json()) as Record<string, never> };
  }

  /** Sends one message and reads the answers to their end, or until `stop` says so of one: then the connection closes. */
  async stream(
    method: string,
    message: object,
    headers: Record<string, string> = {},
    stop: (message: StreamMessage) => boolean | Promise<boolean> = () => false,
  ): Promise<StreamResult> {
    return await this.streamBytes(method, encodeFrame(message), headers, stop);
  }

  async streamBytes(
    method: string,
    body: NonNullable<RequestInit['body']>,
    headers: Record<string, string> = {},
    stop: (message: StreamMessage) => boolean | Promise<boolean> = () => false,
  ): Promise<StreamResult> {
    const response = await this.fetch(`/${method}`, {
      method: 'POST',
      headers: { 'content-type': 'application/connect+json', 'connect-protocol-version': '1', ...headers },
      body,
      duplex: 'half',
    } as RequestInit);
    assert.equal(response.status, 200);
    assert.equal(response.headers.get('content-type'), 'application/connect+json');
    const decoder = new FrameDecoder(2 ** 24);
    const result: StreamResult = { frames: [], messages: [], end: undefined };
    for await (const chunk of response.body!)
      for (const frame of decoder.push(Buffer.from(chunk))) {
        result.frames.push(frame);
        if (frame.flag === endFlag) result.end = frame.message as StreamResult['end'];
        else result.messages.push(frame.message);
        // Leaving the loop closes the connection.
        if (frame.flag !== endFlag && (await stop(frame.message))) return result;
      }
    return result;
  }

  /** The unmodified client, speaking straight to this agent. */
  async client(over: Record<string, unknown> = {}): Promise<Sandbox> {
    const { Sandbox } = await import('e2b');
    return new Sandbox({
      sandboxId: 'itest',
      envdVersion: '0.6.4',
      envdAccessToken: this.accessToken,
      sandboxUrl: this.origin,
      apiKey: `e2b_${'0'.repeat(40)}`,
      ...over,
    } as never);
  }

  async memoryMb(field: 'VmRSS' | 'VmHWM'): Promise<number> {
    const status = await readFile(`/proc/${this.pid}/status`, 'utf8');
    return Number(new RegExp(`${field}:\\s+(\\d+)`).exec(status)![1]) / 1024;
  }

  /** Resolves when `condition` holds for what has arrived. */
  async eventually(what: string, condition: () => boolean): Promise<void> {
    const end = performance.now() + deadlineMs;
    while (!condition()) {
      assert.ok(performance.now() < end, `${what} did not happen within ${deadlineMs} ms`);
      await delay(10);
    }
  }

  /** Ends the agent as the hypervisor does. @returns when it is gone. */
  async end(): Promise<void> {
    const child = this.#child;
    this.#control?.destroy();
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.kill('SIGTERM');
    await withDeadline('the agent to end', deadlineMs, gone);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end();
    await rm(this.rootDir, { recursive: true, force: true });
  }

  #receive(message: Record<string, unknown>): void {
    if (typeof message.event === 'string') this.events.push(message as unknown as ControlEvent);
    else this.#pending.get(message.id as number)?.(message);
  }
}

async function connectWhenThere(path: string, child: ChildProcess): Promise<Socket> {
  const end = performance.now() + deadlineMs;
  for (;;) {
    assert.equal(child.exitCode, null, 'the agent ended at its start');
    assert.ok(performance.now() < end, 'the agent opened no control channel');
    const socket = connect(path);
    const opened = await new Promise<boolean>((resolve) =>
      socket.once('connect', () => resolve(true)).once('error', () => resolve(false)),
    );
    if (opened) return socket;
    await delay(20);
  }
}
