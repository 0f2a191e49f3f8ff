// Owns the agent's life between snapshots, as a table of single hops: booted → ready → sealed → ready for what is
// captured and ended, ready → held → ready for what is captured and goes on.
// Refuses to own what a hop does (after-restore.ts, main.ts).
// Invariant: generation, secret and sandbox exist exactly while the state is `ready` or `held`, and who is restored has
// none of those before it; only `ready` serves.
import type { SandboxInit } from '../../shared/agent-protocol.ts';

export type State = 'booted' | 'ready' | 'held' | 'sealed';
export type Hop = 'restore' | 'seal' | 'hold' | 'proceed';

export const hops: Record<State, Partial<Record<Hop, State>>> = {
  booted: { restore: 'ready' },
  ready: { seal: 'sealed', hold: 'held' },
  // Which of the two comes tells the agent what it is: a clone or the VM that was captured.
  held: { restore: 'ready', proceed: 'ready' },
  sealed: { restore: 'ready' },
};

/** A sandbox whose every call has a user to act as. */
export type SandboxFacts = SandboxInit & { defaultUser: string };

/** What a clone of a sandbox keeps of it besides memory and files. */
type Inherited = Pick<SandboxFacts, 'envVars' | 'defaultUser' | 'defaultWorkdir'>;

export class AgentState {
  #state: State = 'booted';
  #generation = '';
  #secret: string | undefined;
  #nonce: string;
  /** Of the snapshot this VM came from, while it is held under the next one's. */
  #ownNonce = '';
  #sandbox: SandboxFacts | undefined;
  #inherited: Inherited | undefined;
  #held = Promise.withResolvers<void>();

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
  get sandbox(): SandboxFacts | undefined {
    return this.#sandbox;
  }
  /** Of the sandbox whose snapshot this VM came from. */
  get inheritedEnvVars(): Record<string, string> {
    return this.#inherited?.envVars ?? {};
  }
  /** Settles when the state is no longer `held`: it is a clone's now, or its own again. */
  get released(): Promise<void> {
    return this.#state === 'held' ? this.#held.promise : Promise.resolve();
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
    // The old token opens nothing here; what the sandbox's own programs had been given, they keep.
    if (this.#sandbox !== undefined) this.#inherited = this.#sandbox;
    this.#sandbox = undefined;
    this.#release();
  }

  sealed(nonce: string): void {
    this.#state = this.check('seal');
    this.#nonce = nonce;
    this.#generation = '';
    this.#secret = undefined;
    this.#sandbox = undefined;
    this.#inherited = undefined;
  }

  held(nonce: string): void {
    this.#state = this.check('hold');
    this.#ownNonce = this.#nonce;
    this.#nonce = nonce;
  }

  /** @throws Error when it is held for another capture. */
  proceeded(nonce: string): void {
    const next = this.check('proceed');
    if (nonce !== this.#nonce) throw new Error('held for another capture');
    this.#state = next;
    this.#nonce = this.#ownNonce;
    this.#release();
  }

  becomeSandbox(init: SandboxInit): void {
    if (this.#state !== 'ready') throw new Error(`init is not possible in state ${this.#state}`);
    const envVars = { ...this.#inherited?.envVars, ...init.envVars };
    const defaultUser = init.defaultUser ?? this.#inherited?.defaultUser ?? 'user';
    const defaultWorkdir = init.defaultWorkdir ?? this.#inherited?.defaultWorkdir;
    this.#sandbox = {
      ...init,
      envVars,
      defaultUser,
      ...(defaultWorkdir === undefined ? {} : { defaultWorkdir }),
    };
  }

  #release(): void {
    this.#held.resolve();
    this.#held = Promise.withResolvers();
  }
}
