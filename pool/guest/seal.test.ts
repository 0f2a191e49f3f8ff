// Tests what a guest is told on its way to the sealed state.
import assert from 'node:assert/strict';
import { duplexPair } from 'node:stream';
import { describe, it } from 'node:test';
import type { ControlRequest } from '../../shared/agent-protocol.ts';
import { ControlClient } from './control-client.ts';
import { seal } from './seal.ts';

/** A guest that obeys; its nonce is the one it was last sealed with. */
function obedientGuest() {
  const [ours, theirs] = duplexPair();
  const told: ControlRequest[] = [];
  let nonce = '';
  theirs.setEncoding('utf8').on('data', (text: string) => {
    for (const line of text.split('\n').filter((part) => part !== '')) {
      const request = JSON.parse(line) as ControlRequest;
      told.push(request);
      if (request.op === 'seal') nonce = request.nonce;
      const restored = request.op === 'restore' ? { generation: request.generation, nonce, ports: {} } : {};
      theirs.write(`${JSON.stringify({ id: request.id, ok: true, ...restored })}\n`);
    }
  });
  const sealsOf = () => told.filter((request) => request.op === 'seal');
  return { control: new ControlClient(ours), told, sealsOf };
}

describe('seal', () => {
  it('rehearses restores under nonces of their own and ends with the snapshot’s', async () => {
    const { control, told, sealsOf } = obedientGuest();
    await seal(control, { nonce: 'mine', dropCaches: true, wasBooted: false });
    const seals = sealsOf();
    assert.ok(seals.length > 1);
    assert.equal(told.at(-1), seals.at(-1));
    assert.deepEqual(seals.map(({ nonce }) => nonce).indexOf('mine'), seals.length - 1);
    assert.equal(new Set(seals.map(({ nonce }) => nonce)).size, seals.length);
  });

  it('drops caches once, before what restores need is read again', async () => {
    const { control, sealsOf } = obedientGuest();
    await seal(control, { nonce: 'mine', dropCaches: true, wasBooted: true });
    assert.deepEqual(
      sealsOf().map(({ dropCaches }) => dropCaches),
      sealsOf().map((_, index) => index === 0),
    );
  });

  it('rehearses most where no template did before', async () => {
    const [booted, cloned] = [obedientGuest(), obedientGuest()];
    await seal(booted.control, { nonce: 'mine', dropCaches: false, wasBooted: true });
    await seal(cloned.control, { nonce: 'mine', dropCaches: false, wasBooted: false });
    assert.ok(booted.sealsOf().length > cloned.sealsOf().length);
    assert.ok(booted.sealsOf().every(({ dropCaches }) => dropCaches === false));
  });
});
