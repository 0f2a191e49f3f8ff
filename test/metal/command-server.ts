// Owns running programs inside the nested machine for the host: one TCP connection is one program.
// The first line is a CommandRequest, what follows is its standard input; answers are CommandReport lines.
// Invariant: a program ends with its connection, so a host that gives up leaves nothing running.
import { type ChildProcess, spawn } from 'node:child_process';
import { createServer, type Socket } from 'node:net';

export interface CommandRequest {
  argv: string[];
  env?: Record<string, string>;
  cwd?: string;
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
    const child = start(JSON.parse(header.toString('utf8', 0, end)) as CommandRequest);
    child.stdin?.on('error', () => {});
    child.stdin?.write(header.subarray(end + 1));
    socket.pipe(child.stdin!);
    report(socket, child);
  };
  socket.on('data', onData);
  socket.on('error', () => {});
}

function start({ argv: [program = '', ...args], env, cwd }: CommandRequest): ChildProcess {
  return spawn(program, args, { cwd, env: { ...process.env, ...env }, detached: true });
}

function report(socket: Socket, child: ChildProcess): void {
  const send = (message: CommandReport) => socket.writable && socket.write(`${JSON.stringify(message)}\n`);
  for (const stream of ['stdout', 'stderr'] as const)
    child[stream]?.setEncoding('utf8').on('data', (text: string) => send({ stream, text }));
  child.on('error', (error) => {
    send({ stream: 'stderr', text: `${error.message}\n` });
    send({ exitCode: 127, signal: null });
    socket.end();
  });
  child.on('close', (exitCode, signal) => {
    send({ exitCode, signal });
    socket.end();
  });
  socket.on('close', () => {
    if (child.exitCode === null && child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
  });
}

if (import.meta.main) {
  // Half-open: the host ends its side when the standard input has been sent.
  createServer({ allowHalfOpen: true }, serve).listen(commandPort);
  process.stdout.write('command server ready\n');
}
