// Owns the agent's life between snapshots: booted → ready → sealed → ready, as a table of single hops.
// Refuses to own what a hop does (after-restore.ts, main.ts).
// Invariant: generation, secret and sandbox exist exactly while the state is `ready`.
import type { SandboxInit } from '../../shared/agent-protocol.ts';

export type State = 'booted' | 'ready' | 'sealed';
export type Hop = 'restore' | 'seal';

export const hops: Record<State, Partial<Record<Hop, State>>> = {
  booted: { restore: 'ready' },
  ready: { seal: 'sealed' },
  sealed: { restore: 'ready' },
};

export class AgentState {
  #state: State = 'booted';
  #generation = '';
  #secret: string | undefined;
  #nonce: string;
  #sandbox: SandboxInit | undefined;

  constructor(nonce = '') {
    this.#nonce = nonce;
  }

  get state(): State {
    return this.#state;
  }
  get generation(): string {
    return this.#generation;
  }
  get secret(): string | undefined {
    return this.#secret;
  }
  get nonce(): string {
    return this.#nonce;
  }
  get sandbox(): SandboxInit | undefined {
    return this.#sandbox;
  }

  /** @throws Error when the table has no such hop from here. */
  check(hop: Hop): State {
    const next = hops[this.#state][hop];
    if (next === undefined) throw new Error(`${hop} is not possible in state ${this.#state}`);
    return next;
  }

  restored(generation: string, secret: string): void {
    this.#state = this.check('restore');
    this.#generation = generation;
    this.#secret = secret;
  }

  sealed(nonce: string): void {
    this.#state = this.check('seal');
    this.#nonce = nonce;
    this.#generation = '';
    this.#secret = undefined;
    this.#sandbox = undefined;
  }

  becomeSandbox(init: SandboxInit): void {
    if (this.#state !== 'ready') throw new Error(`init is not possible in state ${this.#state}`);
    this.#sandbox = init;
  }
}
