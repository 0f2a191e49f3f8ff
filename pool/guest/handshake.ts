// Owns what makes a resumed copy of memory a machine of its own: fresh entropy, time, identity, secret, generation.
// Invariant: a VM is used only after its agent confirmed all of it, and proved by the nonce which snapshot it is.
import { randomBytes } from 'node:crypto';
import type { RestoreReply } from '../../shared/agent-protocol.ts';
import { ThawError } from '../../shared/errors.ts';
import { newSecret } from '../../shared/ids.ts';
import type { ControlClient } from './control-client.ts';

/** A guest's clock may be off by as long as the message that set it was on its way. */
const clockSlackMs = 80;
const clockTries = 5;
const clockTimeoutMs = 10_000;

export interface GuestIdentity {
  secret: string;
  ports: RestoreReply['ports'];
}

/**
 * @param expectedNonce the snapshot's nonce; '' for a machine that was booted.
 * @throws ThawError `restore-failed` when the guest is another snapshot's or not the one asked.
 */
export async function handshake(
  control: ControlClient,
  vmId: string,
  expectedNonce: string,
  timeoutMs: number,
): Promise<GuestIdentity> {
  const generation = randomBytes(16).toString('hex');
  const secret = newSecret();
  const askedAtMs = performance.now();
  const reply = await control.request<RestoreReply>(
    {
      op: 'restore',
      generation,
      seed: randomBytes(64).toString('base64'),
      wallClockMs: Date.now(),
      hostname: vmId,
      machineId: randomBytes(16).toString('hex'),
      secret,
    },
    timeoutMs,
  );
  if (reply.generation !== generation)
    throw new ThawError('restore-failed', 'the guest confirmed another generation');
  if (reply.nonce !== expectedNonce)
    throw new ThawError(
      'restore-failed',
      'the guest does not hold the memory of the snapshot that was asked for',
    );
  await settleClock(control, performance.now() - askedAtMs);
  return { secret, ports: reply.ports };
}

/** On a host that is slow at the moment: sets the clock again until a message was quick enough to be right. */
async function settleClock(control: ControlClient, restoreMs: number): Promise<void> {
  let onItsWayMs = restoreMs;
  for (let tries = 0; onItsWayMs > clockSlackMs && tries < clockTries; tries++) {
    const askedAtMs = performance.now();
    await control.request({ op: 'clock', wallClockMs: Date.now() }, clockTimeoutMs);
    onItsWayMs = performance.now() - askedAtMs;
  }
}
