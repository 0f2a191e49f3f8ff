// Owns the function's program: built, started, found ready by its own answer, watched, stopped; or one that was found
// listening, which is its user's own and is neither watched nor stopped.
// Refuses to own bundles (internal-routes.ts) and what its log lines become (line-log.ts).
// Invariant: at most one program runs; `port` is 0 unless it has answered and, if it was started here, still runs.
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { StringDecoder } from 'node:string_decoder';
import { setTimeout as delay } from 'node:timers/promises';
import {
  type RunnerExitEvent,
  type RunnerProgress,
  type RunnerSpec,
  runnerPort,
} from '../../shared/agent-protocol.ts';
import { type Account, baseEnvironment, readAccounts } from './accounts.ts';
import type { LineLog } from './line-log.ts';
import { functionDirOf, runnerDir, runnerFile, type Settings } from './settings.ts';
import { type Program, spawnPiped } from './spawn-piped.ts';

/** User that owns the bundle and runs the program. */
export const functionUser = 'user';
const buildTimeoutMs = 15 * 60_000;
const probeIntervalMs = 20;
/** How long the last lines of a program that ended may take to be read, before its end is told. */
const lastLinesMs = 500;

/** Where progress goes. `write` says false when `drained` should be awaited before the next. */
export interface ProgressSink {
  write(progress: RunnerProgress): boolean;
  drained(): Promise<unknown>;
}

export interface RunnerHooks {
  log: LineLog;
  onExit(event: RunnerExitEvent): void;
}

export class FunctionRunner {
  readonly #settings: Settings;
  readonly #reseedAddress: string;
  readonly #hooks: RunnerHooks;
  readonly #account: Account;
  #program: Program | undefined;
  #starting = false;
  #port = 0;

  constructor(settings: Settings, reseedAddress: string, hooks: RunnerHooks) {
    this.#settings = settings;
    this.#reseedAddress = reseedAddress;
    this.#hooks = hooks;
    const account = readAccounts(settings).find(functionUser);
    if (account === undefined) throw new Error(`the guest has no user ${functionUser}`);
    this.#account = account;
  }

  get port(): number {
    return this.#port;
  }

  get account(): Account {
    return this.#account;
  }

  /** The last progress written is `ready` or `failed`. @throws Error while another start is under way. */
  async start(spec: RunnerSpec, sink: ProgressSink, signal: AbortSignal): Promise<void> {
    if (this.#starting) throw new Error('a start is under way');
    this.#starting = true;
    try {
      await this.stop();
      const isThere = spec.runtime === 'listening';
      const begin = () => (isThere ? this.#adopt(spec, signal) : this.#launch(spec, sink, signal));
      const outcome = (await this.#build(spec, sink, signal)) ?? (await begin());
      sink.write(outcome);
      if (outcome.type === 'ready' && this.#settings.mode === 'process' && !isThere)
        writeFileSync(this.#specPath, JSON.stringify(spec));
    } finally {
      this.#starting = false;
    }
  }

  /** The spec that an earlier agent on this root was given; it imitates a warm snapshot in process mode. */
  rememberedSpec(): RunnerSpec | undefined {
    try {
      return JSON.parse(readFileSync(this.#specPath, 'utf8')) as RunnerSpec;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  }

  /** Ends the program and waits for it; its end is not reported. */
  async stop(): Promise<void> {
    const program = this.#program;
    this.#program = undefined;
    this.#port = 0;
    if (this.#settings.mode === 'process' && program !== undefined) rmSync(this.#specPath, { force: true });
    program?.signal('SIGKILL');
    await program?.exited;
  }

  /** Ends the program at once, for the agent's own end. */
  kill(): void {
    this.#program?.signal('SIGKILL');
  }

  get #specPath(): string {
    return join(this.#settings.rootDir, 'runner.json');
  }

  async #build(
    spec: RunnerSpec,
    sink: ProgressSink,
    signal: AbortSignal,
  ): Promise<RunnerProgress | undefined> {
    if (spec.build === undefined) return undefined;
    const failed = (message: string): RunnerProgress => ({ type: 'failed', stage: 'build', message });
    const env = { ...this.#environment(), ...spec.env };
    const program = await this.#spawn(spec, spec.build, env, false).catch(asMessage);
    if (typeof program === 'string') return failed(program);
    const limit = AbortSignal.any([signal, AbortSignal.timeout(buildTimeoutMs)]);
    const kill = () => program.signal('SIGKILL');
    limit.addEventListener('abort', kill, { once: true });
    forward(program, 'build', sink);
    const { exitCode, signal: ending } = await program.ended;
    limit.removeEventListener('abort', kill);
    if (exitCode === 0) return undefined;
    if (limit.aborted) return failed('the build was stopped: it took too long or its caller left');
    return failed(`the build command ended with ${ending ?? `exit code ${exitCode}`}`);
  }

  /** A program of the sandbox that this VM is a clone of. */
  async #adopt(spec: RunnerSpec, signal: AbortSignal): Promise<RunnerProgress> {
    const startedAtMs = performance.now();
    const failed = (message: string): RunnerProgress => ({ type: 'failed', stage: 'start', message });
    const { port } = spec;
    if (port === undefined) return failed('runtime "listening" needs a port');
    const fault = await this.#untilReady(new Promise(() => {}), spec, port, signal);
    if (fault !== undefined) return failed(fault);
    this.#port = port;
    return { type: 'ready', port, elapsedMs: performance.now() - startedAtMs };
  }

  async #launch(spec: RunnerSpec, sink: ProgressSink, signal: AbortSignal): Promise<RunnerProgress> {
    const startedAtMs = performance.now();
    const failed = (message: string): RunnerProgress => ({ type: 'failed', stage: 'start', message });
    const port = this.#settings.mode === 'guest' ? (spec.port ?? runnerPort) : await freePort();
    const argv = this.#argv(spec, port);
    if (argv === undefined) return failed('runtime "command" needs a command');
    const program = await this.#spawn(spec, argv, this.#runEnvironment(spec, port), true).catch(asMessage);
    if (typeof program === 'string') return failed(program);
    if (spec.runtime === 'command') program.stdin?.end();
    this.#program = program;
    const stopForwarding = forward(program, 'start', sink);
    const fault = await this.#untilReady(program.exited, spec, port, signal);
    if (fault !== undefined) {
      await this.stop();
      await Promise.race([program.ended, delay(lastLinesMs)]);
      return failed(fault);
    }
    stopForwarding();
    this.#watch(program, port);
    return { type: 'ready', port, elapsedMs: performance.now() - startedAtMs };
  }

  /** @returns undefined once the program has answered, else why it will not. */
  async #untilReady(
    exited: Program['exited'],
    spec: RunnerSpec,
    port: number,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const deadlineMs = performance.now() + spec.startTimeoutMs;
    let ended: string | undefined;
    void exited.then(({ exitCode, signal: ending }) => {
      ended = `the program ended with ${ending ?? `exit code ${exitCode}`} before it answered on port ${port}`;
    });
    for (;;) {
      const leftMs = deadlineMs - performance.now();
      if (ended !== undefined) return ended;
      if (signal.aborted) return 'the caller left';
      if (leftMs <= 0) return `no answer on port ${port} within ${spec.startTimeoutMs} ms`;
      if (await answers(port, spec.runtime, leftMs, exited)) return undefined;
      await delay(probeIntervalMs);
    }
  }

  #watch(program: Program, port: number): void {
    this.#port = port;
    this.#hooks.log.follow('stdout', program.stdout);
    this.#hooks.log.follow('stderr', program.stderr);
    void program.exited.then(async ({ exitCode, signal }) => {
      if (this.#program !== program) return;
      this.#program = undefined;
      this.#port = 0;
      await Promise.race([program.ended, delay(lastLinesMs)]);
      this.#hooks.onExit({ event: 'runner-exit', exitCode, signal });
    });
  }

  #spawn(
    { place }: RunnerSpec,
    argv: string[],
    env: Record<string, string>,
    stdin: boolean,
  ): Promise<Program> {
    const cwd = place === 'home' ? this.#account.home : functionDirOf(this.#settings);
    return spawnPiped({ argv, cwd, env, account: this.#account, stdin });
  }

  #argv(spec: RunnerSpec, port: number): string[] | undefined {
    const place = [this.#settings.httpHost, String(port), spec.entry ?? ''];
    // A collection because nothing happens would cost each idle clone memory of its own, and give the host none back.
    if (spec.runtime === 'node')
      return [process.execPath, '--no-memory-reducer', runnerFile('node-runner'), ...place];
    if (spec.runtime === 'python') return ['python3', join(runnerDir, 'python_runner.py'), ...place];
    return spec.command;
  }

  #environment(): Record<string, string> {
    return { ...baseEnvironment(this.#account), LANG: 'C.UTF-8' };
  }

  /** The preloads reach every Node and Python process the program starts, as long as it passes its environment on. */
  #runEnvironment(spec: RunnerSpec, port: number): Record<string, string> {
    // --require and not --import: the latter does not run in worker threads.
    const preload = `--require=${JSON.stringify(runnerFile('node-reseed'))}`;
    return {
      ...this.#environment(),
      PYTHONUNBUFFERED: '1',
      ...spec.env,
      PORT: String(port),
      THAW_RESEED_SOCKET: this.#reseedAddress,
      NODE_OPTIONS: [preload, spec.env.NODE_OPTIONS].filter(Boolean).join(' '),
      PYTHONPATH: [runnerDir, spec.env.PYTHONPATH].filter(Boolean).join(':'),
    };
  }
}

const asMessage = (error: NodeJS.ErrnoException): string =>
  `the program cannot be started: ${error.code ?? ''} ${error.message}`;

/** Passes output on as progress until told to stop; the program waits while the reader is slow. */
function forward(program: Program, stage: 'build' | 'start', sink: ProgressSink): () => void {
  const stops = (['stdout', 'stderr'] as const).map((stream) => {
    const output = program[stream];
    const decoder = new StringDecoder('utf8');
    const pass = (chunk: Buffer) => {
      if (sink.write({ type: 'output', stage, stream, text: decoder.write(chunk) })) return;
      output.pause();
      void sink.drained().then(() => output.resume());
    };
    output.on('data', pass);
    return () => output.off('data', pass);
  });
  return () => {
    for (const stop of stops) stop();
  };
}

/** Thaw's own runners answer `OPTIONS *` without calling the function; any other program is asked for `/`. */
function answers(
  port: number,
  runtime: RunnerSpec['runtime'],
  timeoutMs: number,
  exited: Promise<unknown>,
): Promise<boolean> {
  const isOwn = runtime === 'node' || runtime === 'python';
  const target = isOwn ? { method: 'OPTIONS', path: '*' } : { method: 'GET', path: '/' };
  return new Promise((resolve) => {
    // Not by import: see http-server.ts.
    const { request } = process.getBuiltinModule('node:http');
    const probe = request({ host: '127.0.0.1', port, agent: false, ...target });
    const settle = (ready: boolean) => {
      clearTimeout(timer);
      resolve(ready);
      probe.destroy();
    };
    const timer = setTimeout(() => settle(false), timeoutMs);
    probe.once('response', () => settle(true));
    probe.on('error', () => settle(false));
    void exited.then(() => settle(false));
    probe.end();
  });
}

/** In process mode many agents share one host: none may insist on a port. */
function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}
