// Owns a TCP proxy before a real server that spoils what it passes on: late first bytes, refused connections, silence,
// cut-off and flipped answers. Knows nothing of HTTP but that request and answer take turns on a connection.
// Invariant: bytes keep their order; with no fault set it passes everything on as it is.
import { connect, createServer, type Server, type Socket } from 'node:net';

export interface Faults {
  /** Before the first byte of each answer. */
  firstByteDelayMs: number;
  /** Connections are accepted and closed at once; open ones are cut. */
  refuse: boolean;
  /** Answers never come. */
  stall: boolean;
  /** So many bytes of each answer come, then the connection is cut. */
  cutAfterBytes: number | undefined;
  /** One bit of the byte at this place of each answer is flipped, headers included. */
  flipAtByte: number | undefined;
}

export const noFaults: Faults = {
  firstByteDelayMs: 0,
  refuse: false,
  stall: false,
  cutAfterBytes: undefined,
  flipAtByte: undefined,
};

export interface FaultProxy {
  readonly port: number;
  /** `http://127.0.0.1:PORT` */
  readonly endpoint: string;
  /** Answers that have begun. */
  readonly answers: number;
  /** Bytes sent to clients. */
  readonly bytesDown: number;
  readonly connections: number;
  set(faults: Partial<Faults>): void;
  close(): Promise<void>;
}

export async function startFaultProxy(targetPort: number, faults: Partial<Faults> = {}): Promise<FaultProxy> {
  const proxy = new Proxying(targetPort, { ...noFaults, ...faults });
  await proxy.listen();
  return proxy;
}

class Proxying implements FaultProxy {
  answers = 0;
  bytesDown = 0;
  port = 0;
  readonly #targetPort: number;
  #faults: Faults;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor(targetPort: number, faults: Faults) {
    this.#targetPort = targetPort;
    this.#faults = faults;
    this.#server = createServer({ noDelay: true }, (client) => this.#accept(client));
  }

  get endpoint(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get connections(): number {
    return this.#sockets.size / 2;
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(0, '127.0.0.1', resolve);
    });
    this.port = (this.#server.address() as { port: number }).port;
  }

  set(faults: Partial<Faults>): void {
    this.#faults = { ...noFaults, ...faults };
    if (this.#faults.refuse) for (const socket of this.#sockets) socket.destroy();
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #accept(client: Socket): void {
    if (this.#faults.refuse) {
      client.resetAndDestroy();
      return;
    }
    const server = connect({ port: this.#targetPort, host: '127.0.0.1', noDelay: true });
    const ends = [client, server];
    for (const socket of ends) {
      this.#sockets.add(socket);
      socket.on('error', () => {});
      socket.once('close', () => {
        this.#sockets.delete(socket);
        for (const end of ends) end.destroy();
      });
    }
    const answer = new Answer(client, () => this.#faults, this);
    client.on('data', (bytes) => {
      answer.requestCame();
      if (!server.write(bytes)) {
        client.pause();
        server.once('drain', () => client.resume());
      }
    });
    server.on('data', (bytes: Buffer) => answer.pass(bytes, server));
  }
}

/** What goes down one connection: from the first byte after a request on it is an answer. */
class Answer {
  readonly #client: Socket;
  readonly #faults: () => Faults;
  readonly #counts: { answers: number; bytesDown: number };
  #begun = false;
  #passedBytes = 0;
  /** Pieces wait here for the first one's delay. */
  #after: Promise<void> = Promise.resolve();

  constructor(client: Socket, faults: () => Faults, counts: { answers: number; bytesDown: number }) {
    this.#client = client;
    this.#faults = faults;
    this.#counts = counts;
  }

  requestCame(): void {
    this.#begun = false;
  }

  pass(bytes: Buffer, server: Socket): void {
    const { firstByteDelayMs, stall } = this.#faults();
    if (stall) return;
    if (!this.#begun) {
      this.#begun = true;
      this.#passedBytes = 0;
      this.#counts.answers += 1;
      if (firstByteDelayMs > 0)
        this.#after = this.#after.then(() => new Promise((resolve) => setTimeout(resolve, firstByteDelayMs)));
    }
    this.#after = this.#after.then(() => this.#write(bytes, server));
  }

  #write(bytes: Buffer, server: Socket): void {
    if (this.#client.destroyed) return;
    const { cutAfterBytes, flipAtByte } = this.#faults();
    const place = flipAtByte === undefined ? -1 : flipAtByte - this.#passedBytes;
    if (flipAtByte !== undefined && place >= 0 && place < bytes.length) bytes[place]! ^= 1;
    const left = cutAfterBytes === undefined ? bytes.length : Math.max(0, cutAfterBytes - this.#passedBytes);
    const passed = bytes.subarray(0, left);
    this.#passedBytes += passed.length;
    this.#counts.bytesDown += passed.length;
    const goesOn = this.#client.write(passed);
    if (passed.length < bytes.length) this.#client.destroySoon();
    else if (!goesOn) {
      server.pause();
      this.#client.once('drain', () => server.resume());
    }
  }
}
