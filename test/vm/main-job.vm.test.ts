// The main job as a user does it: `thaw up`, deploy, call, sandboxes with the unmodified E2B client, restart, crash.
// Real VMs throughout. One Thaw serves most of it, in order: that is how it is used.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { request } from 'undici';
import { WebSocket } from 'ws';
import { readStartTime } from '../../pool/host/process-table.ts';
import { packTar } from './pack-tar.ts';
import {
  eventually,
  newDataDir,
  removeDir,
  runCli,
  startThaw,
  type ThawProcess,
  vmmPidsOf,
} from './thaw-process.ts';

const exampleDir = join(import.meta.dirname, '../../examples/hello');

const nodeFunction = `
import { createHash } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
let aborted = 0;
export default { async fetch(request) {
  const { pathname } = new URL(request.url);
  if (pathname === '/throw') throw new Error('deliberate');
  if (pathname === '/never') { request.signal.addEventListener('abort', () => { aborted++; console.log('client gone'); }); await new Promise(() => {}); }
  if (pathname === '/aborted') return new Response(String(aborted));
  if (pathname === '/log') { console.log('a line of its own'); return new Response('logged'); }
  if (pathname === '/hash') {
    const hash = createHash('sha256'); let sizeBytes = 0;
    for await (const chunk of request.body) { hash.update(chunk); sizeBytes += chunk.length; }
    return Response.json({ sha256: hash.digest('hex'), sizeBytes });
  }
  if (pathname === '/events') {
    const encoder = new TextEncoder();
    return new Response(new ReadableStream({ async start(controller) {
      for (let n = 0; n < 3; n++) { controller.enqueue(encoder.encode('data: ' + n + '\\n\\n')); await delay(300); }
      controller.close();
    } }), { headers: { 'content-type': 'text/event-stream' } });
  }
  return Response.json({ version: 1, path: pathname });
} };
`;
const pythonFunction = `
async def app(scope, receive, send):
    if scope['type'] == 'websocket':
        await receive()
        await send({'type': 'websocket.accept'})
        while True:
            message = await receive()
            if message['type'] == 'websocket.disconnect':
                return
            await send({'type': 'websocket.send', 'text': 'echo ' + message['text']})
    if scope['type'] != 'http':
        return
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': b'python ' + scope['path'].encode()})
`;

describe('the main job in real VMs', () => {
  let thaw: ThawProcess;
  let dataDir: string;
  let workDir: string;
  const cli = (...args: string[]) => runCli(args, { THAW_DATA_DIR: dataDir });
  const deploy = async (name: string, files: Record<string, string>, manifest: object) => {
    const dir = join(workDir, name);
    await mkdir(dir, { recursive: true });
    for (const [path, text] of Object.entries(files)) await writeFile(join(dir, path), text);
    await writeFile(join(dir, 'thaw.json'), JSON.stringify({ name, ...manifest }));
    return cli('deploy', dir);
  };
  const problemOf = async (response: Response) =>
    (await response.json()) as { code: string; retryable: boolean };

  const requestInWork = () =>
    eventually('the request in work', async () => {
      const text = await (await fetch(`${thaw.adminUrl}/metrics`)).text();
      return /thaw_vms\{state="leased"\} [1-9]/.test(text);
    });
  const giveTime = async (timeoutMs: number) => {
    const patched = await thaw.call('/v1/functions/node-one', {
      method: 'PATCH',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ timeoutMs }),
    });
    assert.equal(patched.status, 200, await patched.text());
  };

  before(async () => {
    dataDir = await newDataDir();
    workDir = await mkdtemp(join(tmpdir(), 'thaw-functions-'));
    thaw = await startThaw(dataDir, ['--deploy', exampleDir]);
  });
  after(async () => {
    await thaw?.end();
    for (const dir of [dataDir, workDir]) await removeDir(dir);
  });

  it('answers from a restored microVM, not from a host process', async () => {
    const response = await fetch(`${thaw.url}/fn/hello/some/path`);
    assert.equal(response.status, 200);
    const body = (await response.json()) as { vm: string; path: string };
    assert.match(body.vm, /^vm-[0-9a-f]{12}$/);
    assert.notEqual(body.vm, hostname());
    assert.equal(body.path, '/some/path');
    assert.match(response.headers.get('x-thaw-tier')!, /^(warm|local)$/);
    assert.match(
      response.headers.get('server-timing')!,
      /queue;dur=.*place;dur=.*lease;dur=.*exec;dur=.*total;dur=/,
    );
  });

  it('deploys a Node, a Python and any other program', async () => {
    const node = await deploy(
      'node-one',
      { 'index.mjs': nodeFunction },
      { runtime: 'node', timeoutMs: 60_000 },
    );
    assert.equal(node.exitCode, 0, node.stderr);
    const python = await deploy('python-one', { 'main.py': pythonFunction }, { runtime: 'python' });
    assert.equal(python.exitCode, 0, python.stderr);
    const command = ['sh', '-c', 'exec python3 -m http.server "$PORT"'];
    const other = await deploy(
      'command-one',
      { 'page.txt': 'a page\n' },
      { runtime: 'command', command, warm: { min: 0, max: 2 } },
    );
    assert.equal(other.exitCode, 0, other.stderr);
    assert.equal(await (await fetch(`${thaw.url}/fn/python-one/x`)).text(), 'python /x');
    assert.equal(await (await fetch(`${thaw.url}/fn/command-one/page.txt`)).text(), 'a page\n');
    assert.deepEqual(await (await fetch(`${thaw.url}/fn/node-one/p`)).json(), { version: 1, path: '/p' });
  });

  it('streams 100 MB up with flat memory', async () => {
    const sizeBytes = 100 * 1024 * 1024;
    const chunk = Buffer.alloc(64 * 1024, 'thaw');
    const hash = createHash('sha256');
    let peakKb = 0;
    const rssKb = async () =>
      Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${thaw.pid}/status`, 'utf8'))![1]);
    const beforeKb = await rssKb();
    const upload = async function* () {
      for (let sentBytes = 0; sentBytes < sizeBytes; sentBytes += chunk.length) {
        hash.update(chunk);
        yield chunk;
        if (sentBytes % (4 * 1024 * 1024) === 0) peakKb = Math.max(peakKb, await rssKb());
      }
    };
    const answer = await request(`${thaw.url}/fn/node-one/hash`, {
      method: 'POST',
      body: Readable.from(upload()),
    });
    const body = (await answer.body.json()) as { sha256: string; sizeBytes: number };
    assert.deepEqual(body, { sha256: hash.digest('hex'), sizeBytes });
    assert.ok(peakKb - beforeKb < 64 * 1024, `memory grew by ${peakKb - beforeKb} kB`);
  });

  it('passes server-sent events as they come', async () => {
    const response = await fetch(`${thaw.url}/fn/node-one/events`);
    const seenAtMs: number[] = [];
    let text = '';
    for await (const part of response.body!) {
      seenAtMs.push(performance.now());
      text += Buffer.from(part).toString();
    }
    assert.equal(text, 'data: 0\n\ndata: 1\n\ndata: 2\n\n');
    assert.ok(seenAtMs.at(-1)! - seenAtMs[0]! > 300, 'the events came all at once');
  });

  it('passes WebSockets', async () => {
    const socket = new WebSocket(`${thaw.url.replace('http', 'ws')}/fn/python-one/ws`);
    const echoed = new Promise<string>((resolve, reject) => {
      socket.once('message', (data) => resolve(String(data)));
      socket.once('error', reject);
    });
    socket.once('open', () => socket.send('hello'));
    assert.equal(await echoed, 'echo hello');
    socket.close();
  });

  it('serves the unmodified E2B client', async () => {
    const connection = { apiKey: thaw.apiKey, apiUrl: thaw.url, sandboxUrl: thaw.url };
    const sandbox = await Sandbox.create('base', { ...connection, timeoutMs: 120_000 });
    try {
      let streamed = '';
      const result = await sandbox.commands.run(`python3 -c 'print(6 * 7)'; echo wrong >&2`, {
        onStdout: (text) => {
          streamed += text;
        },
      });
      assert.deepEqual(
        [result.exitCode, result.stdout, result.stderr, streamed],
        [0, '42\n', 'wrong\n', '42\n'],
      );
      await assert.rejects(sandbox.commands.run('exit 7'), { name: 'CommandExitError', exitCode: 7 });
      await sandbox.files.write('/home/user/note.txt', 'kept');
      assert.equal(await sandbox.files.read('/home/user/note.txt'), 'kept');
      assert.ok((await sandbox.files.list('/home/user')).some(({ name }) => name === 'note.txt'));
      await sandbox.setTimeout(60_000);
      const listed = await Sandbox.list(connection).nextItems();
      assert.ok(listed.some(({ sandboxId }) => sandboxId === sandbox.sandboxId));
    } finally {
      await sandbox.kill();
    }
    assert.deepEqual(await Sandbox.list(connection).nextItems(), []);
  });

  it('shows logs', async () => {
    await fetch(`${thaw.url}/fn/node-one/log`);
    await eventually('the line', async () => {
      const result = await cli('logs', 'node-one');
      return result.stdout.includes('a line of its own');
    });
  });

  it('says whose failure it is', async () => {
    const thrown = await fetch(`${thaw.url}/fn/node-one/throw`);
    assert.deepEqual([thrown.status, thrown.headers.get('x-thaw-error')], [500, 'handler-threw']);
    assert.doesNotMatch(await thrown.text(), /deliberate/);
    const unknown = await fetch(`${thaw.url}/fn/nobody/`);
    assert.deepEqual([unknown.status, (await problemOf(unknown)).code], [404, 'function-not-found']);
    const badName = await fetch(`${thaw.url}/fn/Bad_Name/`);
    assert.deepEqual([badName.status, (await problemOf(badName)).code], [400, 'bad-name']);
  });

  it('tells the guest when the client is gone, and the VM serves on', async () => {
    const leaving = new AbortController();
    const gone = fetch(`${thaw.url}/fn/node-one/never`, { signal: leaving.signal }).catch(() => {});
    await requestInWork();
    leaving.abort();
    await gone;
    await eventually('the abort in the guest', async () => {
      return Number(await (await fetch(`${thaw.url}/fn/node-one/aborted`)).text()) > 0;
    });
  });

  it('answers 504 for a handler that never does, and replaces its VM', async () => {
    await giveTime(1_500);
    const late = await fetch(`${thaw.url}/fn/node-one/never`);
    assert.deepEqual([late.status, (await problemOf(late)).code], [504, 'deadline-exceeded']);
    await eventually('another VM', async () => (await fetch(`${thaw.url}/fn/node-one/`)).status === 200);
    assert.equal(await (await fetch(`${thaw.url}/fn/node-one/aborted`)).text(), '0');
  });

  it('answers 502 when the VMM is killed mid-request, and refills the pool', async () => {
    await giveTime(60_000);
    const answer = fetch(`${thaw.url}/fn/node-one/never`);
    await requestInWork();
    for (const pid of await thaw.vmmPids()) process.kill(pid, 'SIGKILL');
    const response = await answer;
    assert.equal(response.status, 502);
    assert.deepEqual(await problemOf(response).then(({ code, retryable }) => [code, retryable]), [
      'vm-died',
      true,
    ]);
    await eventually(
      'the pool refilled',
      async () => (await fetch(`${thaw.url}/fn/node-one/`)).status === 200,
    );
  });

  it('keeps the previous version serving when a deploy fails, and shows the program’s words', async () => {
    const broken = await deploy(
      'node-one',
      { 'index.mjs': 'throw new Error("broken on purpose");' },
      { runtime: 'node' },
    );
    assert.equal(broken.exitCode, 1);
    assert.match(broken.stderr, /broken on purpose/);
    const built = await deploy(
      'node-one',
      { 'index.mjs': nodeFunction },
      {
        runtime: 'node',
        build: ['sh', '-c', 'echo compiling; echo no luck >&2; exit 3'],
      },
    );
    assert.equal(built.exitCode, 1);
    assert.match(built.stderr, /no luck/);
    assert.equal((await fetch(`${thaw.url}/fn/node-one/`)).status, 200);
  });

  it('refuses bad bundles with the key or the entry', async () => {
    const bad = await deploy('bad-one', { 'index.mjs': nodeFunction }, { runtime: 'node', memoryMb: 'much' });
    assert.equal(bad.exitCode, 1);
    assert.match(bad.stderr, /thaw\.json: memoryMb/);
    const hostile = await packTar({ '../outside.js': '' });
    const response = await thaw.call('/v1/functions/bad-one/versions', {
      method: 'POST',
      body: new Uint8Array(hostile),
    });
    assert.deepEqual([response.status, (await problemOf(response)).code], [400, 'bad-bundle']);
  });

  it('refuses a second Thaw on the data directory, and a port that is taken', async () => {
    const second = await cli('up');
    assert.equal(second.exitCode, 1);
    assert.match(second.stderr, /already runs on .*data-dir-in-use/);
    const otherDir = await newDataDir();
    const port = new URL(thaw.url).port;
    const taken = await runCli(['up'], { THAW_DATA_DIR: otherDir, THAW_PORT: port, THAW_ADMIN_PORT: '0' });
    assert.equal(taken.exitCode, 1);
    assert.match(taken.stderr, /port .* is taken; choose another one with THAW_PORT/);
    await removeDir(otherDir);
  });

  it('gives up a start that is told to end while it boots, and leaves nothing', async () => {
    const otherDir = await newDataDir();
    const starting = startThaw(otherDir);
    starting.catch(() => {});
    const [vmm] = await eventually('the template boots', async () => {
      // Not the trial of KVM, which may come before.
      const snapshots = await readdir(join(otherDir, 'snapshots')).catch(() => []);
      const pids = await vmmPidsOf(otherDir);
      return snapshots.length > 0 && pids.length > 0 && pids;
    });
    const { pid } = JSON.parse(await readFile(join(otherDir, 'lock'), 'utf8')) as { pid: number };
    process.kill(pid, 'SIGTERM');
    await assert.rejects(starting, /ended with 1[\s\S]*SIGTERM: the start was given up/);
    assert.equal(await readStartTime(vmm!), undefined, 'its VMM has ended');
    await assert.rejects(readFile(join(otherDir, 'redis', 'redis.sock')), { code: 'ENOENT' });
    assert.deepEqual(await readdir(join(otherDir, 'snapshots')), []);
    await removeDir(otherDir);
  });

  it('drains on SIGTERM, leaves nothing, and has its functions back after a restart without a deploy', async () => {
    const slow = fetch(`${thaw.url}/fn/node-one/events`).then((response) => response.text());
    await requestInWork();
    assert.equal(await thaw.end('SIGTERM'), 0, thaw.said());
    assert.match(await slow, /data: 2/);
    assert.deepEqual(await vmmPidsOf(dataDir), []);
    const startedAtMs = performance.now();
    thaw = await startThaw(dataDir, ['--deploy', exampleDir]);
    const elapsedMs = performance.now() - startedAtMs;
    assert.deepEqual(await (await fetch(`${thaw.url}/fn/node-one/again`)).json(), {
      version: 1,
      path: '/again',
    });
    assert.equal(await (await fetch(`${thaw.url}/fn/python-one/x`)).text(), 'python /x');
    const hello = (await (await thaw.call('/v1/functions/hello')).json()) as { currentVersion: number };
    assert.equal(hello.currentVersion, 1, 'the same content was deployed again');
    assert.ok(elapsedMs < 20_000, `the second start took ${elapsedMs} ms`);
  });

  it('cleans up after a kill -9 of everything and says so', async () => {
    const left = await thaw.vmmPids();
    assert.ok(left.length > 0);
    await thaw.end('SIGKILL');
    thaw = await startThaw(dataDir);
    assert.match(thaw.said(), /cleaned up after an earlier run: .*process/);
    for (const pid of left) assert.equal(await readStartTime(pid), undefined);
    await eventually('hello again', async () => (await fetch(`${thaw.url}/fn/hello/`)).status === 200);
  });
});
