// Owns the line to every process that keeps random state of its own: programs of a function join at their start,
// get a new seed after each restore, and confirm it.
// A line `ID HEX` asks, `ID` confirms, `ID !WORDS` refuses: a program with a generator of its own can join, too.
// Refuses to own what a process does with its seed (runner/).
// Invariant: no two members get the same seed, and a restore is confirmed only when every member confirmed.
import { hash, randomBytes } from 'node:crypto';
import { createServer, type Server, type Socket } from 'node:net';

const maxMembers = 1024;
const maxLineChars = 1024;

interface Member {
  socket: Socket;
  number: number;
  partial: string;
  confirm?: { id: number; settle(failure: string | undefined): void };
}

export class ReseedServer {
  readonly #server: Server;
  readonly #members = new Set<Member>();
  /** Name of the abstract unix socket, written with `@`: nothing on disk, no length limit of the root's path. */
  readonly address = `@thaw-reseed-${process.pid}-${randomBytes(6).toString('hex')}`;
  #nextNumber = 1;
  #round = 0;
  #seed: Buffer | undefined;

  private constructor() {
    this.#server = createServer((socket) => this.#join(socket));
    this.#server.maxConnections = maxMembers;
  }

  static async listen(): Promise<ReseedServer> {
    const reseeds = new ReseedServer();
    await new Promise<void>((resolve, reject) => {
      reseeds.#server.once('error', reject);
      reseeds.#server.listen(`\0${reseeds.address.slice(1)}`, resolve);
    });
    return reseeds;
  }

  get memberCount(): number {
    return this.#members.size;
  }

  /** @throws Error naming how many processes did not confirm and the first reason. */
  async reseedAll(seed: Buffer, timeoutMs: number): Promise<void> {
    this.#seed = seed;
    this.#round++;
    const outcomes = await Promise.all([...this.#members].map((member) => this.#send(member, timeoutMs)));
    const failures = outcomes.filter((outcome) => outcome !== undefined);
    if (failures.length > 0)
      throw new Error(`${failures.length} of ${outcomes.length} processes were not reseeded: ${failures[0]}`);
  }

  /** Later joiners get no seed until the next restore. */
  forget(): void {
    this.#seed?.fill(0);
    this.#seed = undefined;
  }

  close(): void {
    this.#server.close();
    for (const { socket } of this.#members) socket.destroy();
  }

  #join(socket: Socket): void {
    const member: Member = { socket, number: this.#nextNumber++, partial: '' };
    this.#members.add(member);
    socket.setEncoding('utf8');
    socket.on('data', (text) => this.#receive(member, text as unknown as string));
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#members.delete(member);
      // A process that ended has no state left to share.
      member.confirm?.settle(undefined);
    });
    // It may have started before the capture and been accepted only now: its state may be a copy.
    if (this.#seed !== undefined) void this.#send(member, 0);
  }

  /** @param timeoutMs 0 when nobody waits for the answer. */
  #send(member: Member, timeoutMs: number): Promise<string | undefined> {
    const own = hash('sha256', Buffer.concat([Buffer.from(`member ${member.number} `), this.#seed!]), 'hex');
    member.socket.write(`${this.#round} ${own}\n`);
    if (timeoutMs === 0) return Promise.resolve(undefined);
    return new Promise((resolve) => {
      const settle = (failure: string | undefined) => {
        clearTimeout(timer);
        member.confirm = undefined;
        resolve(failure);
      };
      const timer = setTimeout(() => settle(`no answer within ${timeoutMs} ms`), timeoutMs);
      member.confirm = { id: this.#round, settle };
    });
  }

  #receive(member: Member, text: string): void {
    const lines = (member.partial + text).split('\n');
    member.partial = lines.pop()!;
    if (member.partial.length > maxLineChars) member.socket.destroy();
    for (const line of lines) {
      const space = line.indexOf(' ');
      const id = Number(space < 0 ? line : line.slice(0, space));
      if (member.confirm?.id === id)
        member.confirm.settle(space < 0 ? undefined : line.slice(space + 2).slice(0, 200));
    }
  }
}
