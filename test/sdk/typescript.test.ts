// Holds the TypeScript SDK to its promises over the wire: a real gateway, a real guest agent, real commands and files.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import {
  AuthenticationError,
  CommandExitError,
  DeadlineExceededError,
  type FilesystemEvent,
  InvalidRequestError,
  NotFoundError,
  Sandbox,
  type ThawError,
  UnreachableError,
} from '../../sdk/typescript/index.ts';
import { eventually } from '../../services/gateway/eventually.ts';
import { openSdkWorld, type SdkWorld } from './sdk-world.ts';

let world: SdkWorld;
let sbx: Sandbox;
before(async () => {
  world = await openSdkWorld();
  sbx = await Sandbox.create({
    ...world,
    envs: { FROM_SANDBOX: 'yes' },
    metadata: { purpose: 'sdk test & co' },
  });
});
after(async () => {
  await sbx?.kill();
  await world.close();
});

describe('a sandbox', () => {
  it('is listed, told about, found by another client', async () => {
    const listed = await Sandbox.list({ ...world, metadata: { purpose: 'sdk test & co' } });
    assert.deepEqual(
      listed.map((info) => info.sandboxId),
      [sbx.sandboxId],
    );
    const info = await sbx.getInfo();
    assert.equal(info.state, 'running');
    assert.equal(info.alias, 'base');
    assert.ok(info.memoryMb > 0 && info.cpuCount > 0);
    const other = await Sandbox.connect(sbx.sandboxId, world);
    assert.equal((await other.commands.run('echo $FROM_SANDBOX')).stdout, 'yes\n');
  });

  it('has the time it was given', async () => {
    await sbx.setTimeout(600_000);
    const remainingMs = (await sbx.getInfo()).endAt.getTime() - Date.now();
    assert.ok(remainingMs > 590_000 && remainingMs < 602_000, String(remainingMs));
  });

  it('runs until it is killed', async () => {
    await using short = await Sandbox.create(world);
    assert.equal(await short.isRunning(), true);
    const sleeping = await short.commands.run('sleep 100', { background: true });
    assert.equal(await short.kill(), true);
    assert.equal(await short.isRunning(), false);
    await assert.rejects(sleeping.wait(), (error) => (error as ThawError).code === 'sandbox-not-found');
    assert.equal(await short.kill(), false);
    assert.equal(await Sandbox.kill(short.sandboxId, world), false);
    await assert.rejects(short.commands.run('true'), NotFoundError);
    await assert.rejects(short.getInfo(), NotFoundError);
    await assert.rejects(Sandbox.connect(short.sandboxId, world), NotFoundError);
  });

  it('needs a template that exists and a key that is valid', async () => {
    await assert.rejects(Sandbox.create({ ...world, template: 'no-such' }), (error) => {
      assert.ok(error instanceof NotFoundError);
      assert.equal(error.code, 'template-not-found');
      return true;
    });
    await assert.rejects(
      Sandbox.list({ ...world, apiKey: `e2b_${'1'.repeat(40)}` }),
      (error) =>
        error instanceof AuthenticationError && error.status === 401 && error.requestId !== undefined,
    );
  });
});

describe('a command', () => {
  it('gives its output and exit code', async () => {
    const result = await sbx.commands.run('echo out; echo err >&2');
    assert.deepEqual(result, { exitCode: 0, stdout: 'out\n', stderr: 'err\n' });
  });

  it('is an error when it fails', async () => {
    await assert.rejects(sbx.commands.run('echo half; echo why >&2; exit 3'), (error) => {
      assert.ok(error instanceof CommandExitError);
      assert.deepEqual([error.exitCode, error.stdout, error.stderr], [3, 'half\n', 'why\n']);
      assert.match(error.message, /exit status 3: why/);
      return true;
    });
  });

  it('passes output on as it comes, whole characters only', async () => {
    const pieces: string[] = [];
    // The two bytes of é are written a moment apart: neither may be shown alone.
    const script = `printf '\\303'; sleep 0.2; printf '\\251'; sleep 0.2; printf '\\377'`;
    const { stdout } = await sbx.commands.run(script, { onStdout: (text) => void pieces.push(text) });
    assert.equal(stdout, 'é\u{fffd}');
    assert.equal(pieces.join(''), stdout);
    assert.ok(pieces.length >= 2, 'it came in one piece');
  });

  it('is held back by a listener that takes its time, and loses nothing', async () => {
    let sizeBytes = 0;
    const { stdout } = await sbx.commands.run('head -c 3000000 /dev/zero | tr "\\0" x; echo end', {
      onStdout: async (text) => {
        sizeBytes += text.length;
        await new Promise((resolve) => setImmediate(resolve));
      },
    });
    assert.equal(sizeBytes, 3_000_004);
    assert.ok(stdout.endsWith('xend\n'));
  });

  it('has environment, directory and user as asked', async () => {
    await sbx.files.makeDir('where');
    const { path } = await sbx.files.getInfo('where');
    const { stdout } = await sbx.commands.run('echo $FROM_SANDBOX $OWN; pwd; echo $USER', {
      envs: { OWN: 'own' },
      cwd: path,
      ...(world.hasVms ? { user: 'root' } : {}),
    });
    assert.match(stdout, world.hasVms ? /^yes own\n.*\/where\nroot\n$/ : /^yes own\n.*\/where\n/);
    await assert.rejects(sbx.commands.run('true', { cwd: '/no/such' }), InvalidRequestError);
    await assert.rejects(sbx.commands.run('true', { user: 'no such' }), AuthenticationError);
  });

  it('is killed by its time-out', async () => {
    const startedAtMs = performance.now();
    await assert.rejects(sbx.commands.run('sleep 60', { timeoutMs: 300 }), (error) => {
      assert.ok(error instanceof DeadlineExceededError);
      assert.match(error.message, /took longer than its timeout/);
      return true;
    });
    assert.ok(performance.now() - startedAtMs < 10_000);
    // Told first, reaped then.
    await eventually(
      'its end',
      async () => !(await sbx.commands.list()).some(({ args }) => args.includes('sleep 60')),
    );
  });

  it('reads what it is given, all of it or open-ended', async () => {
    const text = 'zeile\n'.repeat(300_000);
    const { stdout } = await sbx.commands.run('sha256sum', { stdin: text });
    assert.equal(stdout.split(' ')[0], createHash('sha256').update(text).digest('hex'));
    assert.equal((await sbx.commands.run('head -c 3', { stdin: text })).stdout, 'zei');
    assert.equal((await sbx.commands.run('true', { stdin: 'unread' })).exitCode, 0);
    assert.equal((await sbx.commands.run('cat')).stdout, '', 'without stdin there is an end at once');
    const cat = await sbx.commands.run('cat', { background: true, stdin: true });
    await cat.sendStdin('one\n');
    await eventually('an echo', () => cat.stdout === 'one\n');
    await sbx.commands.sendStdin(cat.pid, new Uint8Array([0x74, 0x77, 0x6f]));
    await cat.closeStdin();
    assert.equal((await cat.wait()).stdout, 'one\ntwo');
  });

  it('runs in the background, is listed, found by pid and tag, and killed', async () => {
    const script = 'echo first; read line; echo "got $line"; sleep 100';
    const handle = await sbx.commands.run(script, { background: true, stdin: true, tag: 'worker' });
    const listed = (await sbx.commands.list()).find(({ pid }) => pid === handle.pid)!;
    assert.equal(listed.tag, 'worker');
    assert.deepEqual(listed.args, ['-l', '-c', script]);
    const heard: string[] = [];
    const byTag = await sbx.commands.connect('worker', { onStdout: (text) => void heard.push(text) });
    assert.equal(byTag.pid, handle.pid);
    await handle.sendStdin('hello\n');
    await eventually('the answer', () => heard.join('').includes('got hello'));
    handle.disconnect();
    await assert.rejects(handle.wait(), (error) => (error as ThawError).code === 'disconnected');
    assert.equal(await sbx.commands.kill(byTag.pid), true);
    await assert.rejects(byTag.wait(), (error) => error instanceof CommandExitError && error.exitCode === -1);
    assert.equal(byTag.exitCode, -1);
    assert.equal(await byTag.kill(), false);
    await assert.rejects(sbx.commands.connect(999_999), NotFoundError);
    assert.equal(await sbx.commands.kill('no such tag'), false);
  });

  it('can be asked to end', async () => {
    const handle = await sbx.commands.run(
      `trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done`,
      {
        background: true,
      },
    );
    await eventually('its start', () => handle.stdout === 'up\n');
    assert.equal(await handle.terminate(), true);
    await assert.rejects(handle.wait(), (error) => error instanceof CommandExitError && error.exitCode === 5);
    assert.equal(handle.stdout, 'up\nbye\n');
  });

  it("keeps a listener's failure from hiding", async () => {
    const failing = sbx.commands.run('echo x', {
      onStdout: () => {
        throw new Error('mine');
      },
    });
    await assert.rejects(failing, /mine/);
  });

  it('stops waiting when the caller aborts', async () => {
    const abort = new AbortController();
    const running = sbx.commands.run('sleep 50', { signal: abort.signal, tag: 'aborted' });
    await eventually('its start', async () =>
      (await sbx.commands.list()).some(({ tag }) => tag === 'aborted'),
    );
    abort.abort(new Error('never mind'));
    await assert.rejects(running, /never mind/);
    assert.equal(await sbx.commands.kill('aborted'), true);
  });

  it('is one of many at once', async () => {
    // A login shell takes an emulated CPU most of a second.
    const all = Array.from({ length: world.hasVms ? 10 : 50 }, (_, index) =>
      sbx.commands.run(`sleep 0.2; echo ${index}`),
    );
    const outputs = (await Promise.all(all)).map(({ stdout }) => Number(stdout));
    assert.deepEqual(outputs, [...all.keys()]);
  });
});

describe('files', () => {
  it('are written and read as text, bytes and streams', async () => {
    const written = await sbx.files.write('docs/ä.txt', 'grüße');
    assert.equal(written.name, 'ä.txt');
    assert.ok(written.path.startsWith('/') && written.path.endsWith('/docs/ä.txt'));
    assert.equal(await sbx.files.read('docs/ä.txt'), 'grüße');
    assert.equal(await sbx.files.read(written.path), 'grüße');
    const bytes = new Uint8Array(randomBytes(100_000));
    for (const [name, data] of Object.entries({ bytes, buffer: bytes.buffer, blob: new Blob([bytes]) })) {
      await sbx.files.write(name, data);
      assert.deepEqual(await sbx.files.read(name, { format: 'bytes' }), bytes, name);
    }
    await sbx.files.write('empty', '');
    assert.equal(await sbx.files.read('empty'), '');
  });

  it('are streamed both ways', async () => {
    const pieces = 40;
    const piece = new Uint8Array(randomBytes(256 * 1024));
    let sent = 0;
    const source = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (sent++ === pieces) controller.close();
        else controller.enqueue(piece);
      },
    });
    await sbx.files.write('large', source);
    const info = await sbx.files.getInfo('large');
    assert.equal(info.sizeBytes, pieces * piece.length);
    const hash = createHash('sha256');
    for await (const chunk of await sbx.files.read('large', { format: 'stream' })) hash.update(chunk);
    const expected = createHash('sha256');
    for (let count = 0; count < pieces; count++) expected.update(piece);
    assert.equal(hash.digest('hex'), expected.digest('hex'));
    const left = await sbx.files.read('large', { format: 'stream' });
    await left.cancel();
    await sbx.files.remove('large');
  });

  it('have information, and are listed in depth', async () => {
    await sbx.files.write('tree/a/file', '12345');
    await sbx.commands.run('chmod 640 tree/a/file; ln -s a/file tree/link; ln -s nowhere tree/dead');
    const info = await sbx.files.getInfo('tree/a/file');
    assert.deepEqual([info.type, info.sizeBytes, info.mode], ['file', 5, 0o640]);
    assert.equal(info.permissions, '-rw-r-----');
    assert.ok(Math.abs(info.modifiedAt.getTime() - Date.now()) < 120_000);
    const [a, dead, link] = await sbx.files.list('tree');
    assert.deepEqual([a?.name, a?.type], ['a', 'directory']);
    assert.deepEqual([dead?.name, dead?.type], ['dead', 'symlink']);
    assert.deepEqual([link?.name, link?.type], ['link', 'file']);
    assert.ok(link?.symlinkTarget?.endsWith('/tree/a/file'));
    const deep = await sbx.files.list('tree', { depth: 2 });
    assert.deepEqual(
      deep.map((entry) => entry.name),
      ['a', 'file', 'dead', 'link'],
    );
  });

  it('are made, moved, removed, and known to exist', async () => {
    assert.equal(await sbx.files.makeDir('made/deep'), true);
    assert.equal(await sbx.files.makeDir('made/deep'), false);
    await sbx.files.write('made/one', '1');
    const moved = await sbx.files.rename('made/one', 'made/new/two');
    assert.equal(moved.name, 'two');
    assert.equal(await sbx.files.exists('made/one'), false);
    assert.equal(await sbx.files.exists('made/new/two'), true);
    await sbx.files.remove('made');
    assert.equal(await sbx.files.exists('made'), false);
    await sbx.files.remove('made');
  });

  it('that are not there, or are something else, are typed errors', async () => {
    for (const call of [
      () => sbx.files.read('none'),
      () => sbx.files.getInfo('none'),
      () => sbx.files.list('none'),
      () => sbx.files.rename('none', 'other'),
    ])
      await assert.rejects(call, NotFoundError);
    await sbx.files.write('plain', 'x');
    for (const call of [
      () => sbx.files.list('plain'),
      () => sbx.files.read('/'),
      () => sbx.files.write('/', 'x'),
      () => sbx.files.makeDir('plain'),
      () => sbx.files.write('plain/below', 'x'),
    ])
      await assert.rejects(call, InvalidRequestError);
  });

  it('are watched', async () => {
    await sbx.files.makeDir('watched');
    const events: FilesystemEvent[] = [];
    const handle = await sbx.files.watchDir('watched', (event) => void events.push(event));
    const saw = (type: string, name: string) => () =>
      events.some((event) => event.type === type && event.name === name);
    await sbx.files.write('watched/new', 'x');
    await eventually('create', saw('create', 'new'));
    await eventually('write', saw('write', 'new'));
    await sbx.commands.run('chmod 600 watched/new; mv watched/new watched/moved; rm watched/moved');
    await eventually('chmod', saw('chmod', 'new'));
    await eventually('rename', saw('rename', 'new'));
    await eventually('remove', saw('remove', 'moved'));
    await handle.stop();
    await handle.wait();
    const seen = events.length;
    await sbx.files.write('watched/after', 'x');
    assert.equal(events.length, seen);
    await assert.rejects(
      sbx.files.watchDir('none', () => {}),
      NotFoundError,
    );
  });

  it('are watched in depth, with their information', async () => {
    await sbx.files.makeDir('deep/below');
    const events: FilesystemEvent[] = [];
    const options = { recursive: true, includeEntry: true };
    const handle = await sbx.files.watchDir('deep', (event) => void events.push(event), options);
    await sbx.files.write('deep/below/file', '123');
    await eventually('the entry', () =>
      events.some(({ name, entry }) => name === 'below/file' && entry?.sizeBytes === 3),
    );
    await handle.stop();
  });
});

describe('a terminal', () => {
  it('shows, takes input, is resized, found again, and ends', async () => {
    let shown = '';
    const decoder = new TextDecoder();
    const onData = (bytes: Uint8Array) => {
      shown += decoder.decode(bytes, { stream: true });
    };
    const terminal = await sbx.pty.create({ cols: 80, rows: 24, onData, envs: { PS1: '> ' } });
    await terminal.sendInput('stty size; echo $TERM\n');
    await eventually('its size', () => shown.includes('24 80') && shown.includes('xterm-256color'));
    await terminal.resize({ cols: 101, rows: 31 });
    await terminal.sendInput('stty size\n');
    await eventually('its new size', () => shown.includes('31 101'));
    terminal.disconnect();
    shown = '';
    const again = await sbx.pty.connect(terminal.pid, { onData });
    await again.sendInput('echo back $((6*7))\n');
    await eventually('an answer', () => shown.includes('back 42'));
    await again.sendInput('exit 7\n');
    assert.deepEqual(await again.wait(), { exitCode: 7 });
    assert.equal(await again.kill(), false);
  });
});

describe("a sandbox's port", () => {
  it('is reached through the server', async () => {
    const { port, stop } = await serveInside();
    try {
      const answer = await sbx.fetch(port, '/path?q=1', { method: 'POST', body: 'hello' });
      assert.equal(answer.status, 418);
      assert.equal(await answer.text(), 'POST /path?q=1 hello');
    } finally {
      await stop();
    }
    await assert.rejects(sbx.fetch(9, '/'), (error) => {
      assert.ok(error instanceof UnreachableError);
      assert.equal(error.code, 'guest-unreachable');
      return true;
    });
  });

  /** In a VM a program of the guest; else one of this process, which is on the same host. */
  async function serveInside(): Promise<{ port: number; stop(): Promise<unknown> }> {
    if (!world.hasVms) {
      const server = createServer(async (request, response) => {
        let body = '';
        for await (const chunk of request) body += chunk;
        response.writeHead(418).end(`${request.method} ${request.url} ${body}`);
      });
      await once(server.listen(0, '127.0.0.1'), 'listening');
      const stop = async () => {
        server.closeAllConnections();
        server.close();
      };
      return { port: (server.address() as AddressInfo).port, stop };
    }
    const program = `require('http').createServer((q, s) => { let b = ''; q.on('data', (c) => b += c);
      q.on('end', () => { s.writeHead(418); s.end(q.method + ' ' + q.url + ' ' + b); }); }).listen(8123, () => console.log('up'))`;
    await sbx.files.write('server.js', program);
    const handle = await sbx.commands.run('node server.js', { background: true });
    await eventually('its start', () => handle.stdout === 'up\n', 60_000);
    return { port: 8123, stop: () => handle.kill() };
  }
});
