// Owns bringing a guest to the state that is captured: what a clone's restore runs has been run before, then sealed.
// Refuses to own what the guest does then (services/guest-agent) and the capture (snapshot-builder.ts).
// Invariant: the last word to the guest is the seal with the snapshot's own nonce.
import { randomBytes } from 'node:crypto';
import { newVmId } from '../../shared/ids.ts';
import type { ControlClient } from './control-client.ts';
import { handshake } from './handshake.ts';

/** Of an agent that was just started: by then V8 has compiled what a restore runs and knows the shapes of its objects. */
const firstRehearsals = 12;
/** Of a clone's agent, which has that from its template: what the kernel forgets with its cache, and new programs. */
const laterRehearsals = 2;
const sealTimeoutMs = 30_000;

export interface Seal {
  nonce: string;
  dropCaches: boolean;
  wasBooted: boolean;
}

export const newNonce = (): string => randomBytes(16).toString('hex');

/**
 * What a guest compiles, looks up or loads at its first restores every clone would do again, and pay for with its time
 * and its memory: so they happen here, once. After the cache was dropped, so that what they need is in it again.
 */
export async function seal(control: ControlClient, { nonce, dropCaches, wasBooted }: Seal): Promise<void> {
  const rehearsals = wasBooted ? firstRehearsals : laterRehearsals;
  for (let turn = 0; turn < rehearsals; turn++) {
    const rehearsed = newNonce();
    const isFirst = turn === 0;
    await control.request({ op: 'seal', nonce: rehearsed, dropCaches: dropCaches && isFirst }, sealTimeoutMs);
    await handshake(control, newVmId(), rehearsed, sealTimeoutMs);
  }
  await control.request({ op: 'seal', nonce, dropCaches: false }, sealTimeoutMs);
}
