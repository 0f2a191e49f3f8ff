// Tests the control client and the handshake against a scripted guest, hostile ones included.
import assert from 'node:assert/strict';
import { type Duplex, duplexPair } from 'node:stream';
import { describe, it } from 'node:test';
import type { ControlEvent, ControlRequest } from '../../shared/agent-protocol.ts';
import { ControlClient } from './control-client.ts';
import { handshake } from './handshake.ts';

function guest(answer: (request: ControlRequest, peer: Duplex) => unknown) {
  const [ours, theirs] = duplexPair();
  theirs.setEncoding('utf8').on('data', (text: string) => {
    for (const line of text.split('\n').filter((part) => part !== '')) {
      const reply = answer(JSON.parse(line) as ControlRequest, theirs);
      if (reply !== undefined) theirs.write(`${JSON.stringify(reply)}\n`);
    }
  });
  return { control: new ControlClient(ours), peer: theirs };
}

const ports = { agent: 49983, runner: 8080 };

describe('control client', () => {
  it('matches replies by id, whatever their order', async () => {
    const held: ControlRequest[] = [];
    const { control } = guest((request, peer) => {
      held.push(request);
      if (held.length === 2)
        for (const { id } of held.reverse())
          peer.write(`${JSON.stringify({ id, ok: true, uptimeMs: id })}\n`);
      return undefined;
    });
    const replies = await Promise.all(
      [1, 2].map(() => control.request<{ id: number; uptimeMs: number }>({ op: 'health' }, 1000)),
    );
    for (const reply of replies) assert.equal(reply.uptimeMs, reply.id);
  });

  it('passes events on and ignores what is not JSON', async () => {
    const { control, peer } = guest(() => undefined);
    const event = new Promise<ControlEvent>((resolve) => control.onEvent(resolve));
    peer.write('boot noise\n"text"\nnull\n{"event":"log","stream":"stdout","line":"hi","atMs":1}\n');
    assert.deepEqual(await event, { event: 'log', stream: 'stdout', line: 'hi', atMs: 1 });
  });

  it('ends requests when the channel closes or the deadline passes', async () => {
    const { control, peer } = guest(() => undefined);
    await assert.rejects(control.request({ op: 'health' }, 10), { code: 'deadline-exceeded' });
    const waiting = control.request({ op: 'health' }, 5000);
    peer.destroy();
    await assert.rejects(waiting, { code: 'guest-unreachable' });
    await assert.rejects(control.request({ op: 'health' }, 5000), { code: 'guest-unreachable' });
  });

  it('drops a guest that sends a line without end', async () => {
    const { control, peer } = guest(() => undefined);
    const waiting = control.request({ op: 'health' }, 5000);
    peer.write('x'.repeat(300 * 1024));
    await assert.rejects(waiting, { code: 'guest-unreachable' });
  });
});

describe('handshake', () => {
  it('accepts only the generation it gave and the nonce it expects', async () => {
    const reply = (over: object) => (request: ControlRequest) => ({
      id: request.id,
      ok: true,
      generation: request.op === 'restore' ? request.generation : '',
      nonce: 'aa',
      ports,
      ...over,
    });
    const good = await handshake(guest(reply({})).control, 'vm-0123456789ab', 'aa', 1000);
    assert.deepEqual(good.ports, ports);
    assert.match(good.secret, /^[0-9a-f]{64}$/);
    await assert.rejects(handshake(guest(reply({ nonce: 'bb' })).control, 'vm-0', 'aa', 1000), {
      code: 'restore-failed',
    });
    await assert.rejects(handshake(guest(reply({ generation: 'old' })).control, 'vm-0', 'aa', 1000), {
      code: 'restore-failed',
    });
  });

  it('gives every VM its own seed, secret, generation and machine id', async () => {
    const seen: ControlRequest[] = [];
    const answer = (request: ControlRequest) => {
      seen.push(request);
      return {
        id: request.id,
        ok: true,
        generation: (request as { generation: string }).generation,
        nonce: '',
        ports,
      };
    };
    for (const vmId of ['vm-a', 'vm-b']) await handshake(guest(answer).control, vmId, '', 1000);
    for (const key of ['seed', 'secret', 'generation', 'machineId', 'hostname'])
      assert.notEqual((seen[0] as never)[key], (seen[1] as never)[key], key);
  });
});
