// Owns a server that answers as the contract says and remembers what it was asked: it shows what an SDK sends and how it
// takes each answer. Refuses to own behaviour. Invariant: a request nobody expected is answered 599, which no SDK takes.
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Asked {
  method: string;
  path: string;
  query: Record<string, string>;
  headers: IncomingHttpHeaders;
  json: unknown;
}

export interface Answer {
  status: number;
  headers?: Record<string, string>;
  json?: unknown;
  /** Sent as it is, instead of `json`. */
  bytes?: Uint8Array;
  /** True: the connection is cut after what was sent; the length is announced as longer. */
  cut?: boolean;
  /** True: nothing is ever sent. */
  hang?: boolean;
}

export class ContractServer {
  readonly asked: Asked[] = [];
  readonly #answers = new Map<string, Answer[]>();
  readonly #server: Server;

  constructor() {
    this.#server = createServer(async (request, response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of request) chunks.push(chunk);
      const url = new URL(request.url!, 'http://contract');
      const json = parsed(Buffer.concat(chunks).toString());
      const { headers } = request;
      const query = Object.fromEntries(url.searchParams);
      this.asked.push({ method: request.method!, path: url.pathname, query, headers, json });
      const queue = this.#answers.get(`${request.method} ${url.pathname}`) ?? [];
      const answer = queue.length > 1 ? queue.shift()! : (queue[0] ?? { status: 599 });
      if (answer.hang) return;
      const body = answer.bytes ?? (answer.json === undefined ? '' : JSON.stringify(answer.json));
      const length = answer.cut ? { 'content-length': '100000' } : {};
      response.writeHead(answer.status, { 'content-type': 'application/json', ...length, ...answer.headers });
      if (answer.cut) response.write(body, () => response.destroy());
      else response.end(body);
    });
  }

  async start(): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return this;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Answers of one route in turn; the last one stays. @param route for example `POST /v2/sandboxes`. */
  on(route: string, ...answers: Answer[]): void {
    this.#answers.set(route, answers);
  }

  /** What was asked last. */
  get last(): Asked {
    return this.asked.at(-1)!;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
