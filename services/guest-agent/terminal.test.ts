// Tests pseudo-terminals through raw Connect calls and the real E2B client, on a real agent process.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, describe, it } from 'node:test';
import { AgentFixture, type StreamMessage } from './agent-fixture.ts';

let agent: AgentFixture;
before(async () => {
  agent = await AgentFixture.start();
});
after(() => agent?.[Symbol.asyncDispose]());

const sh = (script: string, over: object = {}) => ({
  process: { cmd: '/bin/sh', args: ['-c', script] },
  pty: { size: { cols: 100, rows: 30 } },
  ...over,
});
const shown = (messages: StreamMessage[]): string =>
  Buffer.concat(messages.map(({ event }) => Buffer.from(event.data?.pty ?? '', 'base64'))).toString();
const run = (message: object, headers: Record<string, string> = {}) =>
  agent.stream('process.Process/Start', message, headers);
const exists = (pid: number) =>
  readFile(`/proc/${pid}/stat`, 'latin1').then(
    (text) => text.slice(text.lastIndexOf(')') + 2)[0] !== 'Z',
    () => false,
  );

describe('a terminal', () => {
  it('is the controlling one of its own session, has the size asked for and an environment', async () => {
    const script =
      'stty size; test -t 0 -a -t 1 -a -t 2 && echo all; ps -o sid= -p $$; echo $$ $TERM; tty; : > /dev/tty && echo opens';
    const { messages, end } = await run(sh(script));
    const [size, all, session, own, name, opens] = shown(messages).split('\r\n');
    assert.deepEqual([size, all], ['30 100', 'all']);
    const { pid } = messages[0].event.start;
    assert.deepEqual([session!.trim(), own], [String(pid), `${pid} xterm-256color`]);
    assert.equal(opens, 'opens');
    assert.match(name!, /^\/dev\/pts\/\d+$/);
    assert.deepEqual(messages.at(-1).event, { end: { exitCode: 0, exited: true, status: 'exit status 0' } });
    assert.deepEqual(end, {});
  });

  it('has 80 columns and 24 rows when no size is given', async () => {
    assert.equal(shown((await run(sh('stty size', { pty: {} }))).messages), '24 80\r\n');
  });

  it('shows everything that was written before its end', async () => {
    for (let round = 0; round < 5; round++) {
      const { messages } = await run(sh('stty -opost; seq 1 50000'));
      assert.equal(shown(messages).split('\n').length, 50_001);
      const sizes = messages.map(({ event }) => Buffer.from(event.data?.pty ?? '', 'base64').length);
      assert.ok(Math.max(...sizes) <= 16 * 1024, 'a chunk has 16 KiB at most');
    }
  });

  it('refuses sizes no terminal has, and what it cannot start', async () => {
    const codeOf = async (message: object) => (await run(message)).end?.error?.code;
    for (const size of [
      { cols: 65_536, rows: 1 },
      { cols: -1, rows: 1 },
      { cols: 1.5, rows: 1 },
      { cols: 'x' },
    ])
      assert.equal(await codeOf(sh('true', { pty: { size } })), 'invalid_argument');
    assert.equal(await codeOf({ process: { cmd: 'no-such-program' }, pty: {} }), 'invalid_argument');
    assert.equal(await codeOf({ process: { cmd: '/etc/passwd' }, pty: {} }), 'invalid_argument');
    assert.equal(await codeOf({ process: { cmd: '/etc' }, pty: {} }), 'invalid_argument');
  });

  it('takes its own kind of input only, and only terminals have a size', async () => {
    const tell = (method: string, pid: number, fields: object) =>
      agent.unary(`process.Process/${method}`, { process: { pid }, ...fields });
    const both = [sh('sleep 60'), { process: { cmd: 'sleep', args: ['60'] }, stdin: true }];
    const size = { pty: { size: { cols: 1, rows: 1 } } };
    for (const message of both) {
      const { messages } = await agent.stream(
        'process.Process/Start',
        message,
        {},
        ({ event }) => event.start,
      );
      const { pid } = messages[0].event.start;
      const [wrong, right] = 'pty' in message ? ['stdin', 'pty'] : ['pty', 'stdin'];
      assert.equal(
        (await tell('SendInput', pid, { input: { [wrong]: 'eA==' } })).body.code,
        'failed_precondition',
      );
      assert.equal((await tell('SendInput', pid, { input: { [right]: 'eA==' } })).status, 200);
      assert.equal((await tell('Update', pid, size)).status, right === 'pty' ? 200 : 400);
      assert.equal((await tell('Update', pid, {})).status, 200);
      assert.equal((await tell('CloseStdin', pid, {})).status, right === 'pty' ? 400 : 200);
      assert.equal((await tell('SendSignal', pid, { signal: 'SIGNAL_SIGKILL' })).status, 200);
    }
    assert.equal((await tell('Update', 4_000_000, size)).status, 404);
  });

  it('is gone at its deadline with every job of its shell', async () => {
    let jobs = 0;
    const script = 'set -m; sleep 600 & echo job $!; wait';
    const { messages, end } = await agent.stream(
      'process.Process/Start',
      { process: { cmd: '/bin/bash', args: ['-c', script] }, pty: {} },
      { 'connect-timeout-ms': '1500' },
    );
    assert.equal(end?.error?.code, 'deadline_exceeded');
    jobs = Number(/job (\d+)/.exec(shown(messages))![1]);
    const pids = [jobs, messages[0].event.start.pid as number];
    let left = pids;
    await agent.eventually('the end of all jobs', () => {
      void Promise.all(pids.map(exists)).then((alive) => {
        left = pids.filter((_, index) => alive[index]);
      });
      return left.length === 0;
    });
  });
});

describe('the e2b client', () => {
  it('creates, types, resizes, reconnects and kills', async () => {
    const { pty } = await agent.client();
    let text = '';
    const seen = (what: string) => agent.eventually(`${what} on the screen`, () => text.includes(what));
    const onData = (data: Uint8Array) => {
      text += Buffer.from(data).toString();
    };
    const type = (pid: number, line: string) => pty.sendInput(pid, Buffer.from(`${line}\n`));
    const terminal = await pty.create({ cols: 90, rows: 20, onData, envs: { MINE: 'here' }, cwd: '/tmp' });
    await type(terminal.pid, 'echo "<$MINE $PWD $(stty size) $TERM $LANG>"');
    await seen('<here /tmp 20 90 xterm-256color C.UTF-8>');
    await type(terminal.pid, `trap 'echo "<resized $(stty size)>"' WINCH; echo "<set $((6 * 7))>"`);
    // A resize that came before the trap would show nothing.
    await seen('<set 42>');
    await pty.resize(terminal.pid, { cols: 132, rows: 43 });
    await type(terminal.pid, '');
    await seen('<resized 43 132>');

    await terminal.disconnect();
    text = '';
    const again = await pty.connect(terminal.pid, { onData });
    assert.equal(again.pid, terminal.pid);
    await type(again.pid, 'echo "<still $((40 + 2))>"');
    await seen('<still 42>');
    assert.equal(await pty.kill(again.pid), true);
    await assert.rejects(again.wait(), { exitCode: -1 });
    assert.equal(await pty.kill(again.pid), false);
    await assert.rejects(pty.resize(again.pid, { cols: 1, rows: 1 }), { name: 'NotFoundError' });
  });

  it('gets the exit code of a shell', async () => {
    const { pty } = await agent.client();
    const terminal = await pty.create({ cols: 80, rows: 24, onData: () => {} });
    await pty.sendInput(terminal.pid, Buffer.from('exit 5\n'));
    await assert.rejects(terminal.wait(), { exitCode: 5 });
  });

  it('types more than the terminal holds, to a program that reads late', async () => {
    const { messages } = await agent.stream(
      'process.Process/Start',
      sh('stty raw -echo; echo ready; sleep 0.5; head -c 1000000 | cksum', { tag: 'late' }),
      {},
      async ({ event }) => {
        if (!event.data) return false;
        return true;
      },
    );
    const { pid } = messages[0].event.start;
    const ended = agent.stream('process.Process/Connect', { process: { tag: 'late' } });
    const client = await agent.client();
    const bytes = Buffer.alloc(1_000_000, 'abcdefghij');
    for (let at = 0; at < bytes.length; at += 100_000)
      await client.pty.sendInput(pid, bytes.subarray(at, at + 100_000));
    const { spawnSync } = await import('node:child_process');
    const expected = spawnSync('cksum', { input: bytes }).stdout.toString().trim();
    assert.ok(shown((await ended).messages).includes(expected));
  });
});
