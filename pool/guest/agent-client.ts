// Owns the host's calls to the agent's internal routes: bundle in, runner started.
// Refuses to own what a build is (snapshot-builder.ts). Invariant: bodies stream; output kept is bounded.
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import { Agent, request } from 'undici';
import { type RunnerProgress, type RunnerSpec, secretHeader } from '../../shared/agent-protocol.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Address } from '../hypervisor/hypervisor.ts';

const outputTailChars = 8 * 1024;
const uploadTimeoutMs = 600_000;

export class AgentClient {
  readonly #origin: string;
  readonly #secret: string;
  // Own connections, closed with this client: none may be open when the VM is captured.
  readonly #dispatcher = new Agent({ connections: 1, headersTimeout: uploadTimeoutMs, bodyTimeout: 0 });

  constructor(address: Address, secret: string) {
    this.#origin = `http://${address.host}:${address.port}`;
    this.#secret = secret;
  }

  async putBundle(bundlePath: string, signal: AbortSignal): Promise<void> {
    await said('the agent did not take the bundle', signal, async () => {
      const response = await this.#send('PUT', '/_thaw/bundle', createReadStream(bundlePath), signal);
      await response.body.dump();
    });
  }

  /** @returns the port it answers on. @throws ThawError `build-failed` | `start-failed` with the end of the program's output. */
  startRunner(
    spec: RunnerSpec,
    signal: AbortSignal,
    onOutput: (text: string) => void = () => {},
  ): Promise<number> {
    return said('the agent did not say that the program runs', signal, () =>
      this.#started(spec, signal, onOutput),
    );
  }

  async #started(spec: RunnerSpec, signal: AbortSignal, onOutput: (text: string) => void): Promise<number> {
    const response = await this.#send('POST', '/_thaw/runner', JSON.stringify(spec), signal);
    let tail = '';
    for await (const line of createInterface({ input: response.body })) {
      const progress = JSON.parse(line) as RunnerProgress;
      if (progress.type === 'output') {
        tail = (tail + progress.text).slice(-outputTailChars);
        onOutput(progress.text);
      } else if (progress.type === 'failed') {
        throw new ThawError(
          progress.stage === 'build' ? 'build-failed' : 'start-failed',
          `${progress.message}\n${tail}`.trim(),
        );
      } else return progress.port;
    }
    throw new ThawError('start-failed', `the agent ended its answer without a result\n${tail}`);
  }

  close(): Promise<void> {
    return this.#dispatcher.destroy();
  }

  async #send(
    method: 'PUT' | 'POST',
    path: string,
    body: string | NodeJS.ReadableStream,
    signal: AbortSignal,
  ) {
    const response = await request(this.#origin + path, {
      method,
      body: body as never,
      headers: {
        [secretHeader]: this.#secret,
        ...(typeof body === 'string' ? { 'content-type': 'application/json' } : {}),
      },
      dispatcher: this.#dispatcher,
      signal,
    });
    if (response.statusCode < 300) return response;
    const text = (await response.body.text()).slice(0, 1024);
    throw new ThawError('guest-unreachable', `${method} ${path}: ${response.statusCode} ${text}`);
  }
}

/** A connection that cannot be made or breaks off says nothing of what it was for. */
async function said<T>(what: string, signal: AbortSignal, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    if (error instanceof ThawError) throw error;
    // Whoever ended it has said why.
    if (signal.aborted && signal.reason instanceof ThawError) throw signal.reason;
    const { name, message } = error as Error;
    const code = name === 'TimeoutError' ? 'deadline-exceeded' : 'guest-unreachable';
    throw new ThawError(code, `${what}: ${message}`, { cause: error });
  }
}
