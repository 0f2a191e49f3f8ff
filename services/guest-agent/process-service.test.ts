// Tests commands through raw Connect calls and through the real E2B client, on a real agent process.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { encodeFrame, FrameDecoder } from '../../shared/connect-frames.ts';
import { AgentFixture, type StreamMessage, type StreamResult } from './agent-fixture.ts';
import { endEvent } from './process-service.ts';

let agent: AgentFixture;
before(async () => {
  agent = await AgentFixture.start();
});
after(() => agent?.[Symbol.asyncDispose]());

type Event = StreamMessage;

async function stream(
  method: string,
  message: object,
  headers: Record<string, string> = {},
  stop: (event: Event) => boolean = () => false,
): Promise<{ events: Event[]; end: StreamResult['end'] }> {
  const result = await agent.stream(`process.Process/${method}`, message, headers, ({ event }) =>
    stop(event),
  );
  return { events: result.messages.map(({ event }) => event), end: result.end };
}

const bash = (script: string, over: object = {}) => ({
  process: { cmd: '/bin/bash', args: ['-l', '-c', script], ...over },
  stdin: false,
});
const text = (events: Event[], name: string) =>
  Buffer.concat(
    events.filter((event) => event.data?.[name]).map((event) => Buffer.from(event.data![name]!, 'base64')),
  ).toString();
const pidOf = ({ events }: { events: Event[] }): number => events[0].start.pid;

describe('process.Process', () => {
  it('starts, streams and ends with the exit code', async () => {
    const result = await stream('Start', bash('echo out; echo err >&2; exit 3'));
    assert.deepEqual(Object.keys(result.events[0]!), ['start']);
    assert.equal(text(result.events, 'stdout'), 'out\n');
    assert.equal(text(result.events, 'stderr'), 'err\n');
    const end = { exitCode: 3, exited: true, status: 'exit status 3', error: 'exit status 3' };
    assert.deepEqual(result.events.at(-1), { end });
    assert.deepEqual(result.end, {});
  });

  it('gives the command its environment, nothing else, and standard streams it can open by name', async () => {
    const script = 'env; echo "$0" > /dev/stderr; echo named > /dev/stdout';
    const request = { process: { cmd: '/bin/sh', args: ['-c', script], envs: { MINE: '1', HOME: '/x' } } };
    const { events } = await stream('Start', { ...request, stdin: false });
    const names = text(events, 'stdout').match(/^[A-Z_a-z]+(?==)/gm)!;
    const known = ['PATH', 'HOME', 'USER', 'LOGNAME', 'FROM_INIT', 'MINE', 'PWD', 'OLDPWD', 'SHLVL', '_'];
    for (const name of names) assert.ok(known.includes(name), `${name} leaked into the command`);
    assert.match(text(events, 'stdout'), /^FROM_INIT=yes$/m);
    assert.match(text(events, 'stdout'), /^HOME=\/x$/m);
    assert.match(text(events, 'stdout'), /^named$/m);
    assert.equal(text(events, 'stderr'), '/bin/sh\n');
  });

  it('refuses what it cannot start, saying why', async () => {
    const codeOf = async (message: object) => (await stream('Start', message)).end?.error?.code;
    assert.equal(await codeOf(bash('true', { cwd: '/does/not/exist' })), 'invalid_argument');
    assert.equal(await codeOf(bash('true', { cwd: '/etc/hostname' })), 'invalid_argument');
    assert.equal(await codeOf({ process: { cmd: '/no/such/program' } }), 'invalid_argument');
    assert.equal(await codeOf({ process: { args: 'x' } }), 'invalid_argument');
    assert.equal(await codeOf({ ...bash('true'), tag: 'x'.repeat(2000) }), 'invalid_argument');
  });

  it('kills at the deadline of Start, with the whole group', async () => {
    const started = performance.now();
    const marker = `sleep 98765.${process.pid}`;
    const result = await stream('Start', bash(`${marker} & wait`), { 'connect-timeout-ms': '400' });
    assert.equal(result.end?.error?.code, 'deadline_exceeded');
    assert.ok(performance.now() - started < 15_000);
    const rest = await stream('Start', bash(`pgrep -fx '${marker}'`));
    assert.equal(text(rest.events, 'stdout'), '');
  });

  it('lets a command outlive its stream and be joined, fed, signalled', async () => {
    const request = { process: { cmd: 'cat' }, tag: 'my-cat', stdin: true };
    const pid = pidOf(await stream('Start', request, {}, (event) => 'start' in event));
    const { body } = await agent.unary('process.Process/List', {});
    const listed = (body.processes as unknown as { pid: number; tag: string }[]).find(
      (one) => one.pid === pid,
    );
    assert.equal(listed?.tag, 'my-cat');
    const joined = stream('Connect', { process: { tag: 'my-cat' } });
    const input = { stdin: Buffer.from('fed\n').toString('base64') };
    await agent.unary('process.Process/SendInput', { process: { pid }, input });
    assert.equal((await agent.unary('process.Process/CloseStdin', { process: { pid } })).status, 200);
    const { events } = await joined;
    assert.equal(pidOf({ events }), pid);
    assert.deepEqual(events.at(-1), { end: { exitCode: 0, exited: true, status: 'exit status 0' } });
    // The end stays for a late Connect; signals find nothing any more.
    const late = await stream('Connect', { process: { pid } });
    assert.deepEqual(
      late.events.map((event) => Object.keys(event)[0]),
      ['start', 'end'],
    );
    const dead = await agent.unary('process.Process/SendSignal', {
      process: { pid },
      signal: 'SIGNAL_SIGKILL',
    });
    assert.deepEqual([dead.status, dead.body.code], [404, 'not_found']);
  });

  it('sends keepalives at the interval the client asks for', async () => {
    const { events } = await stream('Start', bash('sleep 2.6'), { 'keepalive-ping-interval': '1' });
    const kinds = events.map((event) => Object.keys(event)[0]);
    assert.deepEqual(kinds, ['start', 'keepalive', 'keepalive', 'end']);
  });

  it('holds a command back while the client does not read, then delivers everything', async () => {
    const response = await agent.fetch('/process.Process/Start', {
      method: 'POST',
      headers: { 'content-type': 'application/connect+json' },
      body: encodeFrame({ ...bash('head -c 40000000 /dev/zero; echo done >&2'), tag: 'flood' }),
    });
    const reader = response.body!.getReader();
    await reader.read();
    const rss = async () => {
      const { readFile } = await import('node:fs/promises');
      return Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${agent.pid}/status`, 'utf8'))![1]) / 1024;
    };
    const before = await rss();
    // Long enough for an unbounded agent to have read all of it.
    await new Promise((resolve) => setTimeout(resolve, 1500));
    assert.ok((await rss()) - before < 30, 'the agent buffered the output');
    const list = await agent.unary('process.Process/List', {});
    assert.match(JSON.stringify(list.body), /flood/, 'the command must still wait to write');
    const decoder = new FrameDecoder(2 ** 20);
    let sizeBytes = 0;
    for (let part = await reader.read(); !part.done; part = await reader.read())
      for (const { message } of decoder.push(Buffer.from(part.value)))
        sizeBytes += Buffer.from(
          (message as { event?: { data?: { stdout?: string } } }).event?.data?.stdout ?? '',
          'base64',
        ).length;
    // The first read took the start event, and perhaps some output with it.
    assert.ok(sizeBytes > 39_000_000, `${sizeBytes} bytes came`);
  });

  it('words endings as Go does', () => {
    const killed = { exitCode: -1, exited: false, status: 'signal: killed', error: 'signal: killed' };
    assert.deepEqual(endEvent({ exitCode: null, signal: 'SIGKILL' }), killed);
    assert.deepEqual(endEvent({ exitCode: 0, signal: null }), {
      exitCode: 0,
      exited: true,
      status: 'exit status 0',
    });
  });

  it('refuses malformed calls', async () => {
    const post = async (
      path: string,
      headers: Record<string, string>,
      body: string | Uint8Array<ArrayBuffer>,
    ) => {
      const response = await agent.fetch(path, { method: 'POST', headers, body });
      return [response.status, ((await response.json()) as { code: string }).code];
    };
    const json = { 'content-type': 'application/json' };
    assert.deepEqual(await post('/process.Process/List', { 'content-type': 'text/plain' }, '{}'), [
      400,
      'invalid_argument',
    ]);
    assert.deepEqual(await post('/process.Process/List', json, '{'), [400, 'invalid_argument']);
    assert.deepEqual(await post('/process.Process/List', json, '[]'), [400, 'invalid_argument']);
    assert.deepEqual(await post('/process.Process/SendInput', json, `"${'x'.repeat(9 * 2 ** 20)}"`), [
      429,
      'resource_exhausted',
    ]);
  });
});

describe('the e2b client', () => {
  it('runs commands with streamed output, exit codes, input and kill', async () => {
    const client = await agent.client();
    assert.equal(await client.isRunning(), true);
    const seen: string[] = [];
    const result = await client.commands.run('echo one; echo two >&2; echo "$GREETING"', {
      envs: { GREETING: 'hi' },
      onStdout: (data) => void seen.push(data),
    });
    assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['one\nhi\n', 'two\n', 0]);
    assert.equal(seen.join(''), 'one\nhi\n');
    await assert.rejects(client.commands.run('exit 7'), { exitCode: 7 });
    await assert.rejects(client.commands.run('sleep 60', { timeoutMs: 500 }), { name: 'TimeoutError' });
    await assert.rejects(client.commands.run('true', { cwd: '/nowhere' }), { name: 'InvalidArgumentError' });

    const handle = await client.commands.run('read line; echo "got $line"; sleep 60', {
      background: true,
      stdin: true,
    });
    await client.commands.sendStdin(handle.pid, 'words\n');
    assert.ok((await client.commands.list()).some(({ pid }) => pid === handle.pid));
    for (const end = performance.now() + 10_000; handle.stdout !== 'got words\n'; )
      assert.ok(performance.now() < end && (await new Promise((go) => setTimeout(() => go(true), 20))));
    assert.equal(await handle.kill(), true);
    await assert.rejects(handle.wait(), { exitCode: -1 });
    assert.equal(await client.commands.kill(handle.pid), false);
  });

  it('writes, reads, lists, moves and removes files', async () => {
    const { files } = await agent.client();
    const home = `${agent.rootDir}/home`;
    const written = await files.write('notes/a b "ü".txt', 'content');
    assert.equal(written.path, `${home}/notes/a b "ü".txt`);
    assert.equal(await files.read('~/notes/a b "ü".txt'), 'content');
    await files.write([
      { path: 'many/1', data: 'x' },
      { path: 'many/2', data: new Blob(['yy']) },
    ]);
    await files.write('gz', 'z'.repeat(100_000), { gzip: true });
    assert.equal((await files.read('gz', { gzip: true })).length, 100_000);
    const entries = await files.list('many');
    assert.deepEqual(
      entries.map(({ name, size, type, permissions }) => [name, size, type, permissions]),
      [
        ['1', 1, 'file', '-rw-r--r--'],
        ['2', 2, 'file', '-rw-r--r--'],
      ],
    );
    assert.equal(await files.makeDir('made/deep'), true);
    assert.equal(await files.makeDir('made/deep'), false);
    const moved = await files.rename('many/1', 'made/new/one');
    assert.equal(moved.path, `${home}/made/new/one`);
    assert.ok(moved.modifiedTime instanceof Date && Date.now() - moved.modifiedTime.getTime() < 60_000);
    assert.equal(await files.exists('many/1'), false);
    assert.equal((await files.getInfo('made')).type, 'dir');
    assert.deepEqual(
      (await files.list('made', { depth: 3 })).map(({ path }) => path.slice(home.length)),
      ['/made/deep', '/made/new', '/made/new/one'],
    );
    await files.remove('made');
    await files.remove('made');
    await assert.rejects(files.read('made'), { name: 'FileNotFoundError' });
    await assert.rejects(files.list('made'), { name: 'FileNotFoundError' });
    await assert.rejects(files.list('gz'), { name: 'InvalidArgumentError' });
  });
});
