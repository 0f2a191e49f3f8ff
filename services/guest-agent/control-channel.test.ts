// Tests the control channel against torn, hostile and concurrent input.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { ControlChannel, type ControlHandler } from './control-channel.ts';

const health = { state: 'ready', generation: 'g', uptimeMs: 1 } as const;

function channel(handle: ControlHandler = ({ id }) => ({ id, ok: true, ...health })) {
  const written: Record<string, unknown>[] = [];
  const sink = { pendingBytes: 0, write: (text: string) => void written.push(JSON.parse(text)) };
  return { written, sink, channel: new ControlChannel(sink, handle) };
}

describe('control channel', () => {
  it('joins a line that arrives in pieces and answers every line of one piece', async () => {
    const { channel: guest, written } = channel();
    const text = '{"id":1,"op":"health"}\n{"id":2,"op":"health"}\n';
    for (const piece of [text.slice(0, 9), text.slice(9, 30), text.slice(30)]) guest.receive(piece);
    await turn();
    assert.deepEqual(
      written.map(({ id }) => id),
      [1, 2],
    );
  });

  it('survives noise and a line over the limit', async () => {
    const { channel: guest, written } = channel();
    guest.receive('noise\n\nnull\n[]\n{"id":"x","op":"health"}\n');
    for (let count = 0; count < 5; count++) guest.receive('x'.repeat(100 * 1024));
    guest.receive('"}\n{"id":3,"op":"health"}\n');
    await turn();
    assert.deepEqual(
      written.map(({ id }) => id),
      [3],
    );
  });

  it('refuses bad fields by name, without repeating their values', async () => {
    const { channel: guest, written } = channel();
    const restore = {
      id: 4,
      op: 'restore',
      generation: 'g',
      seed: Buffer.alloc(64).toString('base64'),
      wallClockMs: 1,
      hostname: 'vm-1',
      machineId: '0'.repeat(32),
      secret: 's'.repeat(32),
    };
    const bad = {
      generation: '',
      seed: 'AAAA',
      hostname: 'a/b',
      machineId: 'xyz',
      secret: 7,
      wallClockMs: -5,
    };
    for (const [field, value] of Object.entries(bad))
      guest.receive(`${JSON.stringify({ ...restore, [field]: value })}\n`);
    guest.receive('{"id":5,"op":"constructor"}\n');
    await turn();
    await turn();
    assert.equal(written.length, 7);
    for (const [index, field] of Object.keys(bad).entries()) {
      assert.equal(written[index]?.ok, false);
      assert.match(String(written[index]?.message), new RegExp(field));
    }
    assert.match(String(written[6]?.message), /unknown operation/);
  });

  it('runs restore and seal one after the other and answers health meanwhile', async () => {
    const order: string[] = [];
    let finish = () => {};
    const slow = new Promise<void>((resolve) => {
      finish = resolve;
    });
    const { channel: guest, written } = channel(async ({ id, op }) => {
      order.push(`${op} ${id}`);
      if (id === 1) await slow;
      return { id, ok: true, ...health };
    });
    guest.receive(
      '{"id":1,"op":"seal","nonce":"a"}\n{"id":2,"op":"seal","nonce":"b"}\n{"id":3,"op":"health"}\n',
    );
    await turn();
    assert.deepEqual(order, ['health 3', 'seal 1']);
    finish();
    await turn();
    assert.deepEqual(
      written.map(({ id }) => id),
      [3, 1, 2],
    );
  });

  it('drops events, not replies, when the host does not read', async () => {
    const { channel: guest, sink, written } = channel();
    const event = { event: 'log', stream: 'stdout', line: '', atMs: 0 } as const;
    assert.equal(guest.emit(event), true);
    sink.pendingBytes = 10 ** 9;
    assert.equal(guest.emit(event), false);
    guest.receive('{"id":1,"op":"health"}\n');
    await turn();
    assert.equal(written.length, 2);
  });
});
