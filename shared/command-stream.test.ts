// Tests what is read of a command's stream, however its bytes are cut.
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type CommandEvent, commandEvents, startHeaders, startMessage } from './command-stream.ts';
import { encodeFrame, endFlag, FrameDecoder } from './connect-frames.ts';

const base64 = (text: string) => Buffer.from(text).toString('base64');

async function eventsOf(frames: Buffer[], cutBytes = Number.POSITIVE_INFINITY): Promise<CommandEvent[]> {
  const bytes = Buffer.concat(frames);
  const events: CommandEvent[] = [];
  async function* chunks() {
    for (let at = 0; at < bytes.length; at += cutBytes) yield bytes.subarray(at, at + cutBytes);
  }
  for await (const event of commandEvents(chunks())) events.push(event);
  return events;
}

describe("a command's stream", () => {
  it('gives start, output and end in order', async () => {
    const frames = [
      encodeFrame({ event: { start: { pid: 7 } } }),
      encodeFrame({ event: { data: { stdout: base64('out') } } }),
      encodeFrame({ event: { data: { stderr: base64('err') } } }),
      encodeFrame({ event: { keepalive: {} } }),
      encodeFrame({ event: { end: { exitCode: 2, exited: true, status: 'exit status 2' } } }),
      encodeFrame({}, endFlag),
    ];
    const expected = [
      { pid: 7 },
      { stdout: Buffer.from('out') },
      { stderr: Buffer.from('err') },
      {},
      { end: { exitCode: 2, exited: true, status: 'exit status 2' } },
    ];
    assert.deepEqual(await eventsOf(frames), expected);
    assert.deepEqual(await eventsOf(frames, 3), expected);
  });

  it('tells of a refusal, and leaves one that was cut off without an end', async () => {
    const error = { code: 'invalid_argument', message: 'cannot start x' };
    assert.deepEqual(await eventsOf([encodeFrame({ error }, endFlag)]), [{ error }]);
    assert.deepEqual(await eventsOf([encodeFrame({ event: { start: { pid: 1 } } })]), [{ pid: 1 }]);
  });
});

describe('the start of a command', () => {
  it('leaves out what was not asked for', () => {
    const read = (bytes: Buffer) => new FrameDecoder(1024).push(bytes).map(({ message }) => message);
    assert.deepEqual(read(startMessage({ cmd: 'a', args: ['b'] })), [
      { process: { cmd: 'a', args: ['b'] }, stdin: false },
    ]);
    const env = { A: '1' };
    assert.deepEqual(read(startMessage({ cmd: 'a', args: [], cwd: '/', env })), [
      { process: { cmd: 'a', args: [], cwd: '/', envs: env }, stdin: false },
    ]);
    assert.equal(startHeaders('t').authorization, undefined);
    assert.equal(startHeaders('t', 'user').authorization, `Basic ${base64('user:')}`);
  });
});
