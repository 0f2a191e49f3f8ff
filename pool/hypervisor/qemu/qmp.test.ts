// Tests the QMP client against a scripted peer: order of replies, events in between, errors, the peer's end.
import assert from 'node:assert/strict';
import { duplexPair } from 'node:stream';
import { describe, it } from 'node:test';
import { Qmp } from './qmp.ts';

function conversation(answer: (command: string) => string[]) {
  const [ours, theirs] = duplexPair();
  theirs.setEncoding('utf8').on('data', (text: string) => {
    for (const line of text.trim().split('\n'))
      for (const reply of answer((JSON.parse(line) as { execute: string }).execute)) theirs.write(reply);
  });
  theirs.write('{"QMP":{"version":{}}}\r\n');
  return { qmp: new Qmp(ours), peer: theirs };
}

const line = (value: unknown) => `${JSON.stringify(value)}\r\n`;

describe('QMP client', () => {
  it('matches replies in order though events come between', async () => {
    const { qmp } = conversation((command) => [line({ event: 'STOP', data: {} }), line({ return: command })]);
    assert.deepEqual(await Promise.all([qmp.execute('a'), qmp.execute('b')]), ['a', 'b']);
  });

  it('joins a line that arrives in pieces', async () => {
    const { qmp } = conversation(() => ['{"ret', 'urn":{"status":"running"}}\r', '\n']);
    assert.deepEqual(await qmp.execute('query-status'), { status: 'running' });
  });

  it('gives QEMU’s own words in a typed error', async () => {
    const { qmp } = conversation((command) => [
      line(
        command === 'cont'
          ? { error: { class: 'GenericError', desc: 'Failed to get "write" lock' } }
          : { return: {} },
      ),
    ]);
    await assert.rejects(qmp.execute('cont'), { code: 'hypervisor-failed', message: /write" lock/ });
  });

  it('resolves a waiter at the event it names', async () => {
    const { qmp } = conversation((command) => [
      line({ return: {} }),
      ...(command === 'cont' ? [line({ event: 'RESUME', data: 7 })] : []),
    ]);
    const resumed = qmp.event('RESUME');
    await qmp.execute('cont');
    assert.equal(await resumed, 7);
  });

  it('ends every command and waiter when the peer closes', async () => {
    const { qmp, peer } = conversation(() => []);
    const waiting = [qmp.execute('stop'), qmp.event('STOP')];
    peer.destroy();
    for (const outcome of await Promise.allSettled(waiting)) assert.equal(outcome.status, 'rejected');
    await assert.rejects(qmp.execute('cont'), { code: 'hypervisor-failed' });
  });

  it('gives up at the deadline', async () => {
    const { qmp } = conversation((command) => (command === 'stop' ? [] : [line({ return: {} })]));
    await assert.rejects(qmp.execute('stop', undefined, 20), { code: 'deadline-exceeded' });
  });
});
