// Owns the agent's start and its control operations: wires state, control channel, HTTP server and runner.
// Refuses to own any of their work. Invariant: the control channel opens last: who can ask, gets an answer.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import type { Server } from 'node:http';
import { join } from 'node:path';
import type { ControlRequest } from '../../shared/agent-protocol.ts';
import { afterRestore } from './after-restore.ts';
import { AgentState } from './agent-state.ts';
import { ControlChannel, type ControlReply } from './control-channel.ts';
import { serveDevice, serveSocket, serveVsock } from './control-link.ts';
import { FunctionRunner, type ProgressSink } from './function-runner.ts';
import { type AgentParts, serveHttp } from './http-server.ts';
import { dropCaches, setWallClock } from './kernel-calls.ts';
import { LineLog } from './line-log.ts';
import { ProcessTable } from './process-table.ts';
import { ReseedServer } from './reseed-server.ts';
import { functionDirOf, readSettings, type Settings } from './settings.ts';
import type { WatchTable } from './watch-service.ts';

interface Agent extends AgentParts {
  reseeds: ReseedServer;
  server: Server;
  port: number;
}

const noncePath = (settings: Settings) => join(settings.rootDir, 'nonce');

async function main(): Promise<void> {
  const settings = readSettings(process.env);
  mkdirSync(functionDirOf(settings), { recursive: true });
  let channel: ControlChannel | undefined;
  const state = new AgentState(settings.mode === 'process' ? readNonce(settings) : '');
  const reseeds = await ReseedServer.listen();
  // A line on its way while the VM is captured would come out of every clone.
  const log = new LineLog((event) => state.state === 'ready' && channel !== undefined && channel.emit(event));
  const runner = new FunctionRunner(settings, reseeds.address, {
    log,
    onExit: (event) => void channel?.emit(event),
  });
  let watches: Promise<WatchTable> | undefined;
  const parts: AgentParts = {
    settings,
    state,
    processes: new ProcessTable(),
    runner,
    watches: () => {
      watches ??= import('./watch-service.ts').then(({ WatchTable }) => new WatchTable());
      return watches;
    },
  };
  const agent: Agent = { ...parts, reseeds, ...(await serveHttp(parts)) };
  if (settings.mode === 'process') await startRemembered(runner);
  const connect = (sink: ConstructorParameters<typeof ControlChannel>[0]) => {
    const opened = new ControlChannel(sink, (request) => control(agent, request));
    channel = opened;
    return (text: string) => opened.receive(text);
  };
  const vsockPort = /^vsock:(\d+)$/.exec(settings.controlPath)?.[1];
  if (settings.mode === 'guest' && vsockPort) return await serveVsock(Number(vsockPort), connect);
  if (settings.mode === 'guest') return await serveDevice(settings.controlPath, connect);
  const close = await serveSocket(settings.controlPath, connect);
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.once(signal, () => shutDown(agent, close));
}

async function control(agent: Agent, request: ControlRequest): Promise<ControlReply> {
  const { settings, state, reseeds, runner } = agent;
  const { id } = request;
  switch (request.op) {
    case 'health':
      return { id, ok: true, state: state.state, generation: state.generation, uptimeMs: performance.now() };
    case 'restore': {
      state.check('restore');
      await afterRestore(request, settings, reseeds);
      // Held: a clone of a VM that was serving. Those it served are its source's; requests that wait go with them.
      if (state.state === 'held') agent.server.closeAllConnections();
      state.restored(request.generation, request.secret);
      const ports = { agent: agent.port, runner: runner.port };
      return { id, ok: true, generation: state.generation, nonce: state.nonce, ports };
    }
    case 'hold':
      state.held(request.nonce);
      return { id, ok: true };
    case 'proceed':
      state.proceeded(request.nonce);
      if (settings.mode === 'guest') setWallClock(request.wallClockMs);
      return { id, ok: true };
    case 'clock':
      if (settings.mode === 'guest') setWallClock(request.wallClockMs);
      return { id, ok: true };
    case 'seal':
      state.sealed(request.nonce);
      reseeds.forget();
      agent.server.closeAllConnections();
      if (request.dropCaches && settings.mode === 'guest') dropCaches();
      if (settings.mode === 'process') writeFileSync(noncePath(settings), request.nonce);
      return { id, ok: true };
  }
}

function readNonce(settings: Settings): string {
  try {
    return readFileSync(noncePath(settings), 'utf8').trim();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
}

/** A host process cannot be captured: what a snapshot would hold running is started again. */
async function startRemembered(runner: FunctionRunner): Promise<void> {
  const spec = runner.rememberedSpec();
  if (spec === undefined) return;
  const toStderr: ProgressSink = {
    write(progress) {
      if (progress.type === 'failed') throw new Error(`the remembered runner failed: ${progress.message}`);
      if (progress.type === 'output') process.stderr.write(progress.text);
      return true;
    },
    drained: async () => {},
  };
  // Its build ran before the snapshot.
  await runner.start({ ...spec, build: undefined }, toStderr, new AbortController().signal);
}

function shutDown({ runner, processes, server, reseeds }: Agent, closeControl: () => void): void {
  runner.kill();
  processes.killAll();
  server.close();
  server.closeAllConnections();
  reseeds.close();
  closeControl();
  process.exit(0);
}

await main();
