// Owns running commands in a sandbox from the gateway, through its agent as any client would, and sending it a file.
// Refuses to own users' own calls, which go through untouched (sandbox-proxy.ts).
// Invariant: a command is over when its promise settles, unless it was begun with `begin`; an abort ends the wait, not the guest.
import { Readable } from 'node:stream';
import { agentPort } from '../../shared/agent-protocol.ts';
import {
  type CommandEnd,
  commandEvents,
  startHeaders,
  startMessage,
  startPath,
} from '../../shared/command-stream.ts';
import { ThawError } from '../../shared/errors.ts';
import type { GuestResponse, NodeClient } from './node-client.ts';

export interface GuestCommand {
  /** For a login shell. */
  script: string;
  user: string;
  cwd?: string;
  env?: Record<string, string>;
  onOutput?(stream: 'stdout' | 'stderr', chunk: Buffer): void;
}

const answerTimeoutMs = 60_000;
const uploadTimeoutMs = 600_000;
const maxAnswerBytes = 256 * 1024;

export class GuestCommands {
  readonly #node: NodeClient;
  readonly #sandboxId: string;
  readonly #accessToken: string;
  readonly #signal: AbortSignal;

  constructor(node: NodeClient, sandboxId: string, accessToken: string, signal: AbortSignal) {
    this.#node = node;
    this.#sandboxId = sandboxId;
    this.#accessToken = accessToken;
    this.#signal = signal;
  }

  /** Runs it to its end. @throws ThawError `bad-request` when it cannot be started, and what the node throws. */
  async run(command: GuestCommand): Promise<CommandEnd> {
    return await this.#follow(await this.#start(command, this.#signal), command);
  }

  /** Starts it and lets it run. @returns its end, should it come while it is watched, and what stops the watching. */
  async begin(command: GuestCommand): Promise<{ ended: Promise<CommandEnd>; leave(): void }> {
    const controller = new AbortController();
    const signal = AbortSignal.any([controller.signal, this.#signal]);
    const ended = this.#follow(await this.#start(command, signal), command);
    ended.catch(() => {});
    return { ended, leave: () => controller.abort() };
  }

  /** Writes a file as root. @throws ThawError `no-space` | `guest-unreachable`. */
  async upload(path: string, content: Readable): Promise<void> {
    const query = new URLSearchParams({ path, username: 'root' });
    const headers = { 'content-type': 'application/octet-stream' };
    const answer = await this.#ask('POST', `/files?${query}`, headers, content, uploadTimeoutMs);
    const text = await textOf(answer);
    if (answer.status === 507) throw new ThawError('no-space', "the sandbox's disk is full");
    if (answer.status !== 200)
      throw new ThawError('guest-unreachable', `the agent answered ${answer.status}: ${text.slice(0, 512)}`);
  }

  /** The variables that its programs are given. */
  async variables(): Promise<Record<string, string>> {
    const answer = await this.#ask('GET', '/envs', {}, null, answerTimeoutMs);
    const text = await textOf(answer);
    if (answer.status !== 200)
      throw new ThawError('guest-unreachable', `the agent answered ${answer.status}: ${text.slice(0, 512)}`);
    return JSON.parse(text) as Record<string, string>;
  }

  async #start(command: GuestCommand, signal: AbortSignal): Promise<GuestResponse> {
    const { script, user, cwd, env } = command;
    const message = startMessage({ cmd: '/bin/bash', args: ['-l', '-c', script], cwd, env });
    const headers = startHeaders(this.#accessToken, user);
    const body = Readable.from([message]);
    return await this.#ask('POST', startPath, headers, body, answerTimeoutMs, signal);
  }

  async #follow(answer: GuestResponse, { onOutput }: GuestCommand): Promise<CommandEnd> {
    let end: CommandEnd | undefined;
    if (answer.status !== 200)
      throw new ThawError(
        'guest-unreachable',
        `the agent answered ${answer.status}: ${await textOf(answer)}`,
      );
    for await (const event of commandEvents(answer.body)) {
      if (event.error) throw new ThawError('bad-request', event.error.message);
      for (const stream of ['stdout', 'stderr'] as const)
        if (event[stream]) onOutput?.(stream, event[stream]);
      end = event.end ?? end;
    }
    if (end === undefined) throw new ThawError('vm-died', 'the sandbox ended while a command ran in it');
    return end;
  }

  #ask(
    method: string,
    path: string,
    headers: Record<string, string>,
    body: Readable | null,
    timeoutMs: number,
    signal = this.#signal,
  ): Promise<GuestResponse> {
    return this.#node.sandboxRequest(this.#sandboxId, agentPort, {
      method,
      path,
      headers: { ...headers, 'x-access-token': this.#accessToken },
      body,
      signal,
      timeoutMs,
    });
  }
}

async function textOf({ body }: GuestResponse): Promise<string> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of body) {
    sizeBytes += (chunk as Buffer).length;
    if (sizeBytes > maxAnswerBytes)
      throw new ThawError('guest-unreachable', "the agent's answer is too long");
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString('utf8');
}
