// Owns starting a program with real pipes as its standard streams.
// Refuses to own what its output means, and identities (spawn-child.ts).
// Invariant: when `ended` settles the program is gone and its output has been read to the end.
import { closeSync } from 'node:fs';
import { Socket } from 'node:net';
import { makePipe, type Pipe } from './kernel-calls.ts';
import { type Child, type ChildRequest, type ProgramExit, spawnChild } from './spawn-child.ts';

export interface Program extends Child {
  stdin: Socket | undefined;
  stdout: Socket;
  stderr: Socket;
  /** Ended and all output read; `exited` comes earlier when a child of its own still holds its output open. */
  ended: Promise<ProgramExit>;
}

export interface ProgramRequest extends ChildRequest {
  /** false: reads from /dev/null. */
  stdin: boolean;
}

/** @throws Error with a `code` such as ENOENT when the program cannot be started. */
export async function spawnPiped(request: ProgramRequest): Promise<Program> {
  const pipes: Pipe[] = [];
  try {
    // In order stdout, stderr, stdin; the first two are read here, the last one written.
    for (let count = request.stdin ? 3 : 2; count > 0; count--) pipes.push(makePipe());
    const [out, err, input] = pipes as [Pipe, Pipe, Pipe?];
    const child = await spawnChild(request, [input?.readFd ?? 'ignore', out.writeFd, err.writeFd]);
    for (const fd of [out.writeFd, err.writeFd, ...(input ? [input.readFd] : [])]) closeSync(fd);
    return programOf(child, out, err, input);
  } catch (error) {
    for (const { readFd, writeFd } of pipes) {
      closeSync(readFd);
      closeSync(writeFd);
    }
    throw error;
  }
}

function programOf(child: Child, out: Pipe, err: Pipe, input: Pipe | undefined): Program {
  const reader = (fd: number) => new Socket({ fd, readable: true, writable: false }).on('error', () => {});
  const stdout = reader(out.readFd);
  const stderr = reader(err.readFd);
  const stdin =
    input && new Socket({ fd: input.writeFd, readable: false, writable: true }).on('error', () => {});
  const closed = (stream: Socket) => new Promise<void>((resolve) => stream.once('close', () => resolve()));
  const ended = Promise.all([child.exited, closed(stdout), closed(stderr)]).then(([exit]) => exit);
  void child.exited.then(() => stdin?.destroy());
  return { ...child, stdin, stdout, stderr, ended };
}
