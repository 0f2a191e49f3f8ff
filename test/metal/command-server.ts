// Owns running programs inside the nested machine for the host: one TCP connection is one program.
// The first line is a CommandRequest, then come as many bytes of standard input as it says; answers are CommandReport
// lines. Invariant: a program ends with its connection, so a host that gives up leaves nothing running.
import { type ChildProcess, spawn } from 'node:child_process';
import { createServer, type Socket } from 'node:net';

export interface CommandRequest {
  argv: string[];
  env?: Record<string, string>;
  cwd?: string;
  stdinBytes?: number;
}

export type CommandReport =
  | { stream: 'stdout' | 'stderr'; text: string }
  | { exitCode: number | null; signal: string | null };

export const commandPort = 2222;

function serve(socket: Socket): void {
  let header = Buffer.alloc(0);
  const onData = (chunk: Buffer) => {
    header = Buffer.concat([header, chunk]);
    const end = header.indexOf('\n');
    if (end < 0) return;
    socket.off('data', onData);
    const request = JSON.parse(header.toString('utf8', 0, end)) as CommandRequest;
    const child = start(request);
    feed(socket, child, header.subarray(end + 1), request.stdinBytes ?? 0);
    report(socket, child);
  };
  socket.on('data', onData);
  socket.on('error', () => {});
}

function start({ argv: [program = '', ...args], env, cwd }: CommandRequest): ChildProcess {
  return spawn(program, args, { cwd, env: { ...process.env, ...env }, detached: true });
}

function feed(socket: Socket, child: ChildProcess, first: Buffer, sizeBytes: number): void {
  const stdin = child.stdin!;
  let leftBytes = sizeBytes;
  const take = (chunk: Buffer) => {
    leftBytes -= chunk.length;
    if (!stdin.write(chunk)) socket.pause();
    if (leftBytes <= 0) stdin.end();
  };
  stdin.on('error', () => {});
  stdin.on('drain', () => socket.resume());
  socket.on('data', take);
  take(first);
}

function report(socket: Socket, child: ChildProcess): void {
  const send = (message: CommandReport) => socket.writable && socket.write(`${JSON.stringify(message)}\n`);
  let ended = false;
  for (const stream of ['stdout', 'stderr'] as const)
    child[stream]?.setEncoding('utf8').on('data', (text: string) => send({ stream, text }));
  child.on('error', (error) => {
    send({ stream: 'stderr', text: `${error.message}\n` });
    send({ exitCode: 127, signal: null });
    socket.end();
  });
  child.on('exit', () => {
    ended = true;
  });
  child.on('close', (exitCode, signal) => {
    send({ exitCode, signal });
    socket.end();
  });
  // Not half-open: the host ends its side only when it gives up.
  socket.on('close', () => {
    if (!ended && child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
  });
}

if (import.meta.main) {
  createServer(serve).listen(commandPort);
  process.stdout.write('command server ready\n');
}
