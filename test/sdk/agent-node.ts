// Owns a node for tests of the SDKs: each sandbox is a real guest agent as a plain host process behind a real gateway.
// Refuses to own functions (SimulatedNodeClient's). No VM: nothing is isolated, paused or captured.
// Invariant: an agent lives exactly as long as its sandbox.
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { Agent } from 'undici';
import type {
  GuestRequest,
  GuestResponse,
  SandboxFacts,
  SandboxRequest,
} from '../../services/gateway/node-client.ts';
import { SimulatedNodeClient } from '../../services/gateway/simulated-node-client.ts';
import { AgentFixture } from '../../services/guest-agent/agent-fixture.ts';
import { joinUpgrade } from '../../services/node/guest-proxy.ts';
import { agentPort, type SandboxInit } from '../../shared/agent-protocol.ts';
import { ThawError } from '../../shared/errors.ts';

const upgradeTimeoutMs = 5_000;

export class AgentNode extends SimulatedNodeClient {
  readonly #agents = new Map<string, AgentFixture>();
  readonly #dispatcher = new Agent({ bodyTimeout: 0 });

  override async createSandbox(request: SandboxRequest): Promise<SandboxFacts> {
    const facts = await super.createSandbox(request);
    const agent = await AgentFixture.start('ready');
    this.#agents.set(request.sandboxId, agent);
    await agent.init({ accessToken: request.accessToken, envVars: request.envVars });
    return facts;
  }

  override async setUpSandbox(sandboxId: string, init: SandboxInit): Promise<void> {
    await super.setUpSandbox(sandboxId, init);
    await this.#agents.get(sandboxId)?.init({ ...init });
  }

  override async killSandbox(sandboxId: string): Promise<boolean> {
    await this.#end(sandboxId);
    return await super.killSandbox(sandboxId);
  }

  override endSandbox(sandboxId: string, reason: string): void {
    void this.#end(sandboxId);
    super.endSandbox(sandboxId, reason);
  }

  override async sandboxRequest(
    sandboxId: string,
    guestPort: number,
    request: GuestRequest,
  ): Promise<GuestResponse> {
    const { method, path, headers, body, signal, timeoutMs } = request;
    const origin = `http://127.0.0.1:${this.#portOf(sandboxId, guestPort)}`;
    const call = { origin, method: method as 'GET', path, headers, body, signal };
    try {
      const answer = await this.#dispatcher.request({ ...call, headersTimeout: timeoutMs });
      return {
        status: answer.statusCode,
        headers: answer.headers as Record<string, string | string[]>,
        body: answer.body,
        tier: 'warm',
        stages: { queueMs: 0, leaseMs: 0, execMs: 0 },
      };
    } catch (error) {
      const refused = (error as NodeJS.ErrnoException).code === 'ECONNREFUSED';
      throw new ThawError(refused ? 'guest-unreachable' : 'vm-died', (error as Error).message);
    }
  }

  override async sandboxUpgrade(
    sandboxId: string,
    guestPort: number,
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    const address = { host: '127.0.0.1', port: this.#portOf(sandboxId, guestPort) };
    await joinUpgrade(address, request, request.url!, socket, head, upgradeTimeoutMs);
  }

  override async stop(): Promise<void> {
    for (const sandboxId of [...this.#agents.keys()]) await this.#end(sandboxId);
    await this.#dispatcher.destroy();
    await super.stop();
  }

  #portOf(sandboxId: string, guestPort: number): number {
    const agent = this.#agents.get(sandboxId);
    if (agent === undefined) throw new ThawError('sandbox-not-found', 'no such sandbox');
    return guestPort === agentPort ? agent.ports.agent : guestPort;
  }

  async #end(sandboxId: string): Promise<void> {
    const agent = this.#agents.get(sandboxId);
    this.#agents.delete(sandboxId);
    await agent?.[Symbol.asyncDispose]();
  }
}
