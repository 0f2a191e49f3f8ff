// Tests input over one call, whose messages arrive one after the other, on a real agent process.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { encodeFrame } from '../../shared/connect-frames.ts';
import { AgentFixture } from './agent-fixture.ts';

let agent: AgentFixture;
before(async () => {
  agent = await AgentFixture.start();
});
after(() => agent?.[Symbol.asyncDispose]());

const base64 = (text: string) => Buffer.from(text).toString('base64');
const stdin = (text: string) => encodeFrame({ data: { input: { stdin: base64(text) } } });
const startOf = (process: object) => encodeFrame({ start: { process } });

/** A body whose parts the test hands over one by one. */
function openBody() {
  let controller: ReadableStreamDefaultController<Uint8Array>;
  const body = new ReadableStream<Uint8Array>({
    start(given) {
      controller = given;
    },
  });
  return { body, send: (bytes: Uint8Array) => controller.enqueue(bytes), end: () => controller.close() };
}

const streamInput = (body: NonNullable<RequestInit['body']>, headers = {}) =>
  agent.streamBytes('process.Process/StreamInput', body, headers);
const codeOf = async (...frames: Buffer[]) =>
  (await streamInput(new Uint8Array(Buffer.concat(frames)))).end?.error?.code;

async function startCat(tag: string): Promise<number> {
  const { messages } = await agent.stream(
    'process.Process/Start',
    { process: { cmd: 'cat' }, tag, stdin: true },
    {},
    ({ event }) => event.start,
  );
  return messages[0].event.start.pid;
}

describe('process.Process/StreamInput', () => {
  it('hands over each message when it comes, in order, and answers at the end', async () => {
    const pid = await startCat('fed');
    let seen = '';
    const output = agent.stream('process.Process/Connect', { process: { tag: 'fed' } }, {}, ({ event }) => {
      seen += Buffer.from(event.data?.stdout ?? '', 'base64').toString();
      return false;
    });
    const { body, send, end } = openBody();
    const answered = streamInput(body);
    send(startOf({ tag: 'fed' }));
    send(stdin('one '));
    await agent.eventually('the first words', () => seen === 'one ');
    send(encodeFrame({ keepalive: {} }));
    // Two frames in one part, and one frame in two.
    const third = stdin('three ');
    send(Buffer.concat([stdin('two '), third.subarray(0, 7)]));
    send(third.subarray(7));
    await agent.eventually('the other words', () => seen === 'one two three ');
    end();
    const { messages, end: last } = await answered;
    assert.deepEqual([messages, last], [[{}], {}]);
    await agent.unary('process.Process/CloseStdin', { process: { pid } });
    await output;
  });

  it('says what is wrong with the stream', async () => {
    const pid = await startCat('target');
    const start = startOf({ pid });
    assert.equal(await codeOf(), 'invalid_argument');
    assert.equal(await codeOf(stdin('x')), 'invalid_argument');
    assert.equal(await codeOf(start, encodeFrame({ nothing: 1 })), 'invalid_argument');
    assert.equal(await codeOf(start, stdin('x').subarray(0, 9)), 'invalid_argument');
    assert.equal(await codeOf(start, encodeFrame({}, 2)), 'invalid_argument');
    assert.equal(await codeOf(start, encodeFrame({}, 1)), 'unimplemented');
    assert.equal(await codeOf(startOf({ pid: 4_000_000 })), 'not_found');
    assert.equal(
      await codeOf(start, encodeFrame({ data: { input: { pty: 'eA==' } } })),
      'failed_precondition',
    );
    await agent.unary('process.Process/SendSignal', { process: { pid }, signal: 'SIGNAL_SIGKILL' });
  });

  it('ends at its deadline, and when the command is gone', async () => {
    const pid = await startCat('short');
    const { body, send } = openBody();
    send(startOf({ pid }));
    const late = await streamInput(body, { 'connect-timeout-ms': '300' });
    assert.equal(late.end?.error?.code, 'deadline_exceeded');
    const second = openBody();
    second.send(startOf({ pid }));
    const answered = streamInput(second.body);
    await agent.unary('process.Process/SendSignal', { process: { pid }, signal: 'SIGNAL_SIGKILL' });
    await agent.stream('process.Process/Connect', { process: { pid } });
    second.send(stdin('x'));
    assert.equal((await answered).end?.error?.code, 'not_found');
  });
});

describe('a unary call', () => {
  it('ends at the deadline its client gives it', async () => {
    const { messages } = await agent.stream(
      'process.Process/Start',
      { process: { cmd: 'sleep', args: ['60'] }, stdin: true },
      {},
      ({ event }) => event.start,
    );
    const { pid } = messages[0].event.start;
    // More than a pipe holds, to a program that does not read.
    const input = { stdin: Buffer.alloc(200_000).toString('base64') };
    const { status, body } = await agent.unary(
      'process.Process/SendInput',
      { process: { pid }, input },
      { 'connect-timeout-ms': '300' },
    );
    assert.deepEqual([status, body.code], [504, 'deadline_exceeded']);
    await agent.unary('process.Process/SendSignal', { process: { pid }, signal: 'SIGNAL_SIGKILL' });
  });
});
