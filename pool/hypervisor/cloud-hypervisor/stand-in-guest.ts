// Owns the guest of the stand-in for tests: real memory mapped from the page file, and an agent that keeps what it knows
// in that memory and nowhere else. A clone of it is a clone because its pages are. Runs no code of a guest.
// Invariant: without the mark that a boot wrote, the memory is not a guest's and the machine resets, as a real one would.
import { open } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import koffi from 'koffi';
import { agentPort, controlVsockPort } from '../../../shared/agent-protocol.ts';
import { lowMemoryBytes } from './device-state.ts';

const protection = 3;
const mapShared = 1;
const mapPrivate = 2;
const highMemoryAddress = 4 * 1024 ** 3;
const mark = 'THAW STAND-IN GUEST';
const markAt = 0;
const factsAt = 4096;
const factsBytes = 4096;
const callRetryMs = 20;

const libc = koffi.load(null);
const mmap = libc.func(
  'void *mmap(void *at, size_t size, int protection, int flags, int fd, int64_t offset)',
);

/** What the agent remembers. */
interface Facts {
  state: 'booted' | 'ready' | 'sealed';
  generation: string;
  nonce: string;
  restores: number;
}

export class GuestMemory {
  readonly #pieces: Buffer[];

  private constructor(pieces: Buffer[]) {
    this.#pieces = pieces;
  }

  static async map(path: string, sizeBytes: number, shared: boolean): Promise<GuestMemory> {
    // Privately: opened for reading only, as the real one does.
    await using file = await open(path, shared ? 'r+' : 'r');
    const pieces: Buffer[] = [];
    for (let at = 0; at < sizeBytes; ) {
      const length = Math.min(sizeBytes - at, at < lowMemoryBytes ? lowMemoryBytes - at : sizeBytes);
      const address = mmap(null, length, protection, shared ? mapShared : mapPrivate, file.fd, at) as unknown;
      pieces.push(Buffer.from(koffi.view(address, length)));
      at += length;
    }
    return new GuestMemory(pieces);
  }

  /** Puts a page where the guest has it. */
  fill(gpa: number, bytes: Buffer): void {
    const isLow = gpa < lowMemoryBytes;
    bytes.copy(this.#pieces[isLow ? 0 : 1]!, isLow ? gpa : gpa - highMemoryAddress);
  }

  get pieces(): readonly Buffer[] {
    return this.#pieces;
  }

  get isMarked(): boolean {
    return this.#low.toString('latin1', markAt, markAt + mark.length) === mark;
  }

  mark(): void {
    this.#low.write(mark, markAt, 'latin1');
    this.facts = { state: 'booted', generation: '', nonce: '', restores: 0 };
  }

  get facts(): Facts {
    const text = this.#low.toString('utf8', factsAt, factsAt + factsBytes);
    return JSON.parse(text.slice(0, text.indexOf('\0'))) as Facts;
  }

  set facts(facts: Facts) {
    this.#low.fill(0, factsAt, factsAt + factsBytes).write(JSON.stringify(facts), factsAt);
  }

  get #low(): Buffer {
    return this.#pieces[0]!;
  }
}

/** The agent: calls the host when it runs, answers HTTP, stands still while the VM is paused. */
export class StandInGuest {
  readonly memory: GuestMemory;
  readonly #vsockPath: string;
  readonly #address: string | undefined;
  #control: Socket | undefined;
  #http: Server | undefined;
  #running: Promise<void> = Promise.resolve();
  #run = () => {};

  constructor(memory: GuestMemory, vsockPath: string, address: string | undefined) {
    this.memory = memory;
    this.#vsockPath = vsockPath;
    this.#address = address;
    this.pause();
  }

  pause(): void {
    this.#running = new Promise((resolve) => {
      this.#run = resolve;
    });
  }

  resume(): void {
    this.#run();
    if (this.#control === undefined) this.#call();
    if (this.#http === undefined && this.#address !== undefined) this.#serve(this.#address);
  }

  #call(): void {
    const socket = connect(`${this.#vsockPath}_${controlVsockPort}`);
    this.#control = socket;
    socket.on('error', () => setTimeout(() => this.#call(), callRetryMs));
    createInterface({ input: socket }).on('line', (line) => void this.#answer(socket, line));
  }

  async #answer(socket: Socket, line: string): Promise<void> {
    if (line === '') return;
    await this.#running;
    const request = JSON.parse(line) as { id: number; op: string; generation: string; nonce: string };
    const { id } = request;
    const facts = this.memory.facts;
    if (request.op === 'restore')
      this.memory.facts = {
        ...facts,
        state: 'ready',
        generation: request.generation,
        restores: facts.restores + 1,
      };
    if (request.op === 'seal')
      this.memory.facts = { ...facts, state: 'sealed', generation: '', nonce: request.nonce };
    const now = this.memory.facts;
    const ports = { agent: agentPort, runner: 0 };
    socket.write(`${JSON.stringify({ id, ok: true, ...now, uptimeMs: performance.now(), ports })}\n`);
  }

  #serve(address: string): void {
    this.#http = createServer(async (_request, response) => {
      await this.#running;
      response.writeHead(204).end();
    }).listen(agentPort, address);
  }
}
