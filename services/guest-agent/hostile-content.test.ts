// Tests the agent with what programs really leave behind: bytes that are no text, names that are no text, directories of
// many thousand entries.
import assert from 'node:assert/strict';
import { closeSync, existsSync, mkdirSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { AgentFixture, type StreamMessage } from './agent-fixture.ts';

let agent: AgentFixture;
let home: string;
before(async () => {
  [agent, home] = await AgentFixture.startWithHome();
});
after(() => agent?.[Symbol.asyncDispose]());

/** Every byte there is, thrice: whole and torn sequences of UTF-8 among them. */
const everyByte = Buffer.from(Array.from({ length: 3 * 256 }, (_, index) => index % 256));

describe('output that is no text', () => {
  const outputOf = async (request: object, name: string) => {
    const { messages, end } = await agent.stream('process.Process/Start', request);
    assert.equal(end?.error, undefined);
    const chunks = messages.map((message: StreamMessage) => message.event.data?.[name] ?? '');
    return Buffer.concat(chunks.map((chunk: string) => Buffer.from(chunk, 'base64')));
  };

  it('arrives byte by byte, on both streams', async () => {
    writeFileSync(join(home, 'bytes'), everyByte);
    const run = (script: string) => ({ process: { cmd: '/bin/bash', args: ['-c', script] }, stdin: false });
    assert.deepEqual(await outputOf(run('cat bytes'), 'stdout'), everyByte);
    assert.deepEqual(await outputOf(run('cat bytes >&2'), 'stderr'), everyByte);
  });

  it('arrives byte by byte from a terminal', async () => {
    const script = 'stty raw; cat bytes';
    const request = {
      process: { cmd: '/bin/bash', args: ['-c', script] },
      pty: { size: { cols: 80, rows: 24 } },
    };
    assert.deepEqual(await outputOf(request, 'pty'), everyByte);
  });

  it('is shown by the client with the mark for what cannot be decoded, and breaks nothing', async () => {
    const { commands } = await agent.client();
    const { stdout, exitCode } = await commands.run("printf 'a\\xff\\xfeb\\xe2\\x82'; echo end >&2");
    assert.equal(exitCode, 0);
    assert.match(stdout, /^a\ufffd+b\ufffd+$/);
  });

  it('goes in and comes out again', async () => {
    const { body } = await agent.unary('process.Process/List', {});
    assert.deepEqual(body.processes, []);
    const request = { process: { cmd: '/bin/cat' }, stdin: true, tag: 'cat' };
    const process = { tag: 'cat' };
    const echoed: Buffer[] = [];
    await agent.stream('process.Process/Start', request, {}, async (message) => {
      if (message.event.start !== undefined) {
        const input = { stdin: everyByte.toString('base64') };
        assert.equal((await agent.unary('process.Process/SendInput', { process, input })).status, 200);
        assert.equal((await agent.unary('process.Process/CloseStdin', { process })).status, 200);
      }
      const { stdout } = message.event.data ?? {};
      if (stdout !== undefined) echoed.push(Buffer.from(stdout, 'base64'));
      return false;
    });
    assert.deepEqual(Buffer.concat(echoed), everyByte);
  });
});

describe('a directory of 10,000 entries', () => {
  const count = 10_000;
  before(() => {
    mkdirSync(join(home, 'many'));
    for (let index = 0; index < count; index++)
      closeSync(openSync(join(home, 'many', `entry-${String(index).padStart(5, '0')}`), 'w'));
  });

  it('is listed whole, in order, in flat memory', async () => {
    const beforeMb = await agent.memoryMb('VmRSS');
    const { status, body } = await agent.unary('filesystem.Filesystem/ListDir', { path: 'many' });
    assert.equal(status, 200);
    const names = (body.entries as unknown as { name: string }[]).map(({ name }) => name);
    assert.equal(names.length, count);
    assert.deepEqual(names, names.toSorted());
    const grownMb = (await agent.memoryMb('VmHWM')) - beforeMb;
    assert.ok(grownMb < 60, `the agent grew by ${grownMb.toFixed(0)} MB`);
  });

  it('is watched and removed', async () => {
    const { files } = await agent.client();
    const watch = await agent.unary('filesystem.Filesystem/CreateWatcher', { path: 'many' });
    assert.equal(watch.status, 200);
    await files.remove('many');
    assert.equal(existsSync(join(home, 'many')), false);
    const told = await agent.unary('filesystem.Filesystem/GetWatcherEvents', watch.body);
    const removed = (told.body.events as unknown as { type: string }[]).filter(
      ({ type }) => type === 'EVENT_TYPE_REMOVE',
    );
    assert.ok(removed.length >= count, `${removed.length} of ${count} removals were told`);
  });
});

describe('a name that is no text', () => {
  const name = Buffer.from([0x6e, 0xff, 0xfe]);
  before(() => {
    mkdirSync(join(home, 'names'));
    writeFileSync(join(home, 'names/plain'), '');
    writeFileSync(Buffer.concat([Buffer.from(`${home}/names/`), name]), '');
  });

  it('takes nothing else out of a listing', async () => {
    const { status, body } = await agent.unary('filesystem.Filesystem/ListDir', { path: 'names' });
    assert.equal(status, 200);
    const names = (body.entries as unknown as { name: string }[]).map((entry) => entry.name);
    assert.ok(names.includes('plain'), names.join());
  });

  it('does not keep its directory from being removed', async () => {
    const { status, body } = await agent.unary('filesystem.Filesystem/Remove', { path: 'names' });
    assert.deepEqual([status, body], [200, {}]);
    assert.equal(existsSync(join(home, 'names')), false);
  });
});
