// Owns running shell commands in a guest through its agent, as the conformance suite, VM tests and benchmarks do.
// Refuses to own users' commands (they come through the gateway). Invariant: a command that fails is an error here.
import { randomBytes } from 'node:crypto';
import { Agent, type Dispatcher } from 'undici';
import { secretHeader } from '../../shared/agent-protocol.ts';
import {
  type CommandEvent,
  commandEvents,
  startHeaders,
  startMessage,
  startPath,
} from '../../shared/command-stream.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Address } from '../hypervisor/hypervisor.ts';

const timeoutMs = 60_000;

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
    for await (const { stdout, stderr, end } of this.#events(script)) {
      if (stdout || stderr) onOutput();
      output += stdout ?? '';
      complaint += stderr ?? '';
      if (end && end.exitCode !== 0)
        throw new ThawError('guest-unreachable', `${script}: ${end.status}: ${complaint}`);
    }
    return output.replace(/\n$/, '');
  }

  /** Starts a command that runs on by itself. @returns its pid in the guest. */
  async start(script: string): Promise<number> {
    for await (const { pid } of this.#events(script)) if (pid !== undefined) return pid;
    throw new ThawError('guest-unreachable', `${script}: ended before it began`);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#dispatcher.destroy();
  }

  async *#events(script: string): AsyncGenerator<CommandEvent> {
    const message = startMessage({ cmd: '/bin/bash', args: ['-c', script] });
    const response = await this.#post(startPath, message, startHeaders(this.accessToken));
    for await (const event of commandEvents(response.body)) {
      if (event.error) throw new ThawError('guest-unreachable', event.error.message);
      yield event;
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
