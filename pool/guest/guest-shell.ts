// Owns running shell commands in a guest through its agent, as the conformance suite, VM tests and benchmarks do.
// Refuses to own users' commands (they come through the gateway). Invariant: a command that fails is an error here.
import { randomBytes } from 'node:crypto';
import { Agent, type Dispatcher } from 'undici';
import { secretHeader } from '../../shared/agent-protocol.ts';
import { encodeFrame, endFlag, FrameDecoder } from '../../shared/connect-frames.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Address } from '../hypervisor/hypervisor.ts';

const maxFrameBytes = 1024 * 1024;
const timeoutMs = 60_000;

interface ProcessEvent {
  event?: {
    start?: { pid: number };
    data?: { stdout?: string; stderr?: string };
    end?: { exitCode?: number; status: string };
  };
  error?: { message: string };
}

export class GuestShell implements AsyncDisposable {
  readonly #origin: string;
  readonly #dispatcher = new Agent({ headersTimeout: timeoutMs, bodyTimeout: timeoutMs });
  readonly accessToken = randomBytes(16).toString('hex');

  private constructor(address: Address) {
    this.#origin = `http://${address.host}:${address.port}`;
  }

  /** Makes the guest a sandbox with a token of its own. */
  static async open(
    address: Address,
    secret: string,
    envVars: Record<string, string> = {},
  ): Promise<GuestShell> {
    const shell = new GuestShell(address);
    const init = { accessToken: shell.accessToken, envVars, defaultUser: 'root' };
    const response = await shell.#post('/_thaw/init', JSON.stringify(init), { [secretHeader]: secret });
    await response.body.dump();
    if (response.statusCode !== 204)
      throw new ThawError('guest-unreachable', `the guest refused to be a sandbox: ${response.statusCode}`);
    return shell;
  }

  /** @returns what the command wrote, without the last line end. */
  async run(script: string, onOutput: () => void = () => {}): Promise<string> {
    let output = '';
    let complaint = '';
    for await (const { event } of this.#events(script)) {
      if (event?.data) onOutput();
      output += Buffer.from(event?.data?.stdout ?? '', 'base64').toString();
      complaint += Buffer.from(event?.data?.stderr ?? '', 'base64').toString();
      if (event?.end && (event.end.exitCode ?? 0) !== 0)
        throw new ThawError('guest-unreachable', `${script}: ${event.end.status}: ${complaint}`);
    }
    return output.replace(/\n$/, '');
  }

  /** Starts a command that runs on by itself. @returns its pid in the guest. */
  async start(script: string): Promise<number> {
    for await (const { event } of this.#events(script)) if (event?.start) return event.start.pid;
    throw new ThawError('guest-unreachable', `${script}: ended before it began`);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#dispatcher.destroy();
  }

  async *#events(script: string): AsyncGenerator<ProcessEvent> {
    const message = { process: { cmd: '/bin/bash', args: ['-c', script] }, stdin: false };
    const response = await this.#post('/process.Process/Start', encodeFrame(message), {
      'content-type': 'application/connect+json',
      'x-access-token': this.accessToken,
    });
    const decoder = new FrameDecoder(maxFrameBytes);
    for await (const chunk of response.body)
      for (const { flag, message } of decoder.push(chunk as Buffer)) {
        const event = message as ProcessEvent;
        if (event.error) throw new ThawError('guest-unreachable', event.error.message);
        if (flag !== endFlag) yield event;
      }
  }

  #post(
    path: string,
    body: string | Buffer,
    headers: Record<string, string>,
  ): Promise<Dispatcher.ResponseData> {
    const origin = this.#origin;
    return this.#dispatcher.request({ origin, path, method: 'POST', body, headers });
  }
}
