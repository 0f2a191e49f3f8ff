// What the snapshots page promises, with the unmodified E2B client against a whole Thaw: S1 to S7, pause, fork.
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { Sandbox } from 'e2b';
import { eventually, newDataDir, removeDir, startThaw, type ThawProcess } from './thaw-process.ts';

/**
 * Counts ten times a second into a file in memory, with the file kept open, so that a gap or a restart would show. Asked to,
 * it says what is in a file that has no name any more, and what environment it has.
 */
const counter = `
import os, time
n = 0
f = open('/dev/shm/counter', 'w')
held = open('/home/user/held', 'w+')
held.write('held-open'); held.flush(); os.unlink('/home/user/held')
while True:
    n += 1
    f.seek(0); f.write(str(n) + ' ' + str(time.monotonic()) + '\\n'); f.flush()
    if os.path.exists('/dev/shm/ask') and not os.path.exists('/dev/shm/answer'):
        held.seek(0)
        open('/dev/shm/answer', 'w').write(held.read() + ' ' + os.environ['FROM'])
    time.sleep(0.1)
`;

describe('snapshots of running sandboxes', () => {
  let thaw: ThawProcess;
  let dataDir: string;
  const connection = () => ({ apiKey: thaw.apiKey, apiUrl: thaw.url, sandboxUrl: thaw.url });
  const create = (template = 'base') => Sandbox.create(template, { ...connection(), timeoutMs: 600_000 });
  const outputOf = async (sandbox: Sandbox, command: string) =>
    (await sandbox.commands.run(command, { timeoutMs: 60_000 })).stdout.trim();
  const countOf = async (sandbox: Sandbox) =>
    Number((await outputOf(sandbox, 'cat /dev/shm/counter')).split(' ')[0]);

  before(async () => {
    dataDir = await newDataDir();
    thaw = await startThaw(dataDir, [], { THAW_BASE_WARM: '0' });
  });
  after(async () => {
    await thaw?.end();
    await removeDir(dataDir);
  });

  let snapshotId: string;
  let countAtSnapshot: number;

  it('S1, S3, S4: a snapshot is taken of all that runs, and the sandbox goes on after a short pause', async (t) => {
    const sandbox = await create();
    await sandbox.files.write('/home/user/counter.py', counter);
    const background = { background: true, timeoutMs: 0, envs: { FROM: 'source' } } as const;
    await sandbox.commands.run('python3 /home/user/counter.py', background);
    await eventually('the counter runs', async () => (await countOf(sandbox).catch(() => 0)) > 3);
    await sandbox.commands.run('echo kept-in-memory > /dev/shm/note; echo unsynced > /home/user/note');
    await sandbox.commands.run(
      'mkdir -p /workspace 2>/dev/null || sudo mkdir -p /workspace; sudo touch /workspace/here',
    );
    ({ snapshotId } = await sandbox.createSnapshot());
    countAtSnapshot = await countOf(sandbox);
    const facts = (await (await thaw.call(`/v1/snapshots/${snapshotId}`)).json()) as {
      pauseMs: Record<string, number>;
      dirtyPages: number;
    };
    t.diagnostic(`pause ${JSON.stringify(facts.pauseMs)} ms, ${facts.dirtyPages} dirty pages`);
    assert.ok(facts.pauseMs.total! < 1_000, `the pause was ${facts.pauseMs.total} ms`);
    const later = await countOf(sandbox);
    await eventually('the source counts on', async () => (await countOf(sandbox)) > later);
    await sandbox.kill();
  });

  it('S2, S5: a new sandbox goes on there after the source was killed', async () => {
    const clone = await create(snapshotId);
    const first = await countOf(clone);
    assert.ok(
      first > 3 && first <= countAtSnapshot + 600,
      `the clone counts from ${first}, not ${countAtSnapshot}`,
    );
    await eventually('the clone counts on', async () => (await countOf(clone)) > first);
    assert.equal(
      await outputOf(clone, 'cat /dev/shm/note /home/user/note; ls /workspace'),
      'kept-in-memory\nunsynced\nhere',
    );
    await outputOf(clone, 'touch /dev/shm/ask');
    const answered = () => outputOf(clone, 'cat /dev/shm/answer 2>/dev/null || true');
    assert.equal(await eventually('its process answers', answered), 'held-open source');
    await clone.kill();
  });

  it('S6: two branches are independent and of different identity', async () => {
    const [one, two] = [await create(snapshotId), await create(snapshotId)];
    await one.files.write('/home/user/branch', 'one');
    await two.files.write('/home/user/branch', 'two');
    assert.deepEqual(
      [await one.files.read('/home/user/branch'), await two.files.read('/home/user/branch')],
      ['one', 'two'],
    );
    const draw = `cat /proc/sys/kernel/random/uuid; hostname; cat /etc/machine-id; python3 -c 'import random; print(random.random())'`;
    const [a, b] = [(await outputOf(one, draw)).split('\n'), (await outputOf(two, draw)).split('\n')];
    for (const [index, value] of a.entries()) assert.notEqual(value, b[index]);
    await Promise.all([one.kill(), two.kill()]);
  });

  it('S7: a connection to the outside ends in the clone instead of hanging, and lives on in the source', async () => {
    const sandbox = await create();
    const program = `
import socket
server = socket.create_server(('0.0.0.0', 7000))
peer, _ = server.accept()
peer.recv(65536)
open('/dev/shm/open', 'w').write('yes')
try:
    outcome = 'closed' if peer.recv(1) == b'' else 'more'
except OSError as error:
    outcome = type(error).__name__
open('/dev/shm/outcome', 'w').write(outcome)
`;
    const outcomeOf = (of: Sandbox) => outputOf(of, 'cat /dev/shm/outcome 2>/dev/null || echo open');
    await sandbox.files.write('/home/user/connection.py', program);
    await sandbox.commands.run('python3 /home/user/connection.py', { background: true, timeoutMs: 0 });
    const leaving = new AbortController();
    await eventually('the server listens', async () =>
      (await outputOf(sandbox, 'ss -ltn')).includes(':7000'),
    );
    const headers = { 'e2b-sandbox-id': sandbox.sandboxId, 'e2b-sandbox-port': '7000' };
    const held = fetch(thaw.url, { headers, signal: leaving.signal }).catch(() => {});
    await eventually(
      'the connection',
      async () => (await outputOf(sandbox, 'cat /dev/shm/open 2>/dev/null || true')) === 'yes',
    );
    const { snapshotId: withConnection } = await sandbox.createSnapshot();
    const clone = await create(withConnection);
    await eventually('its end in the clone', async () => (await outcomeOf(clone)) !== 'open', 10_000);
    assert.equal(await outcomeOf(sandbox), 'open');
    leaving.abort();
    await held;
    await Promise.all([sandbox.kill(), clone.kill()]);
    assert.equal(await Sandbox.deleteSnapshot(withConnection, connection()), true);
  });

  it('row 23: pauses and goes on under the same id, twenty times, with nothing lost', async () => {
    const sandbox = await create();
    const { sandboxId } = sandbox;
    for (let round = 1; round <= 20; round++) {
      await sandbox.commands.run(`echo ${round} >> /home/user/rounds; echo ${round} >> /dev/shm/rounds`);
      assert.equal(await sandbox.pause(), true);
      assert.equal(await sandbox.isRunning(), false);
      await sandbox.connect({ timeoutMs: 600_000 });
      assert.equal(sandbox.sandboxId, sandboxId);
      const expected = Array.from({ length: round }, (_, index) => index + 1).join('\n');
      const kept = await outputOf(sandbox, 'cat /home/user/rounds; echo -; cat /dev/shm/rounds');
      assert.equal(kept, `${expected}\n-\n${expected}`);
    }
    await sandbox.kill();
  });

  it('snapshots a clone of a clone to depth 10, of which none needs its ancestors, and none takes longer', async (t) => {
    const chain = ['base'];
    const pausesMs: number[] = [];
    for (let depth = 1; depth <= 10; depth++) {
      const sandbox = await create(chain.at(-1));
      await sandbox.commands.run(`echo ${depth} >> /home/user/depth; echo ${depth} >> /dev/shm/depth`);
      const { snapshotId: next } = await sandbox.createSnapshot();
      const facts = (await (await thaw.call(`/v1/snapshots/${next}`)).json()) as {
        parent: string;
        pauseMs: { total: number };
      };
      pausesMs.push(facts.pauseMs.total);
      await sandbox.kill();
      // Only the newest is left at each moment.
      if (depth > 1) {
        assert.equal(facts.parent, chain.at(-1));
        assert.equal((await thaw.call(`/v1/snapshots/${facts.parent}`, { method: 'DELETE' })).status, 204);
      }
      chain.push(next);
    }
    const last = await create(chain.at(-1));
    // From the disk, not from memory.
    await last.commands.run('echo 3 > /proc/sys/vm/drop_caches', { user: 'root' });
    assert.equal(await outputOf(last, 'cat /home/user/depth | tr "\\n" " "'), '1 2 3 4 5 6 7 8 9 10');
    assert.equal(await outputOf(last, 'cat /dev/shm/depth | tr "\\n" " "'), '1 2 3 4 5 6 7 8 9 10');
    await last.kill();
    t.diagnostic(`pauses ${pausesMs.map((pauseMs) => pauseMs.toFixed(0)).join(' ')} ms`);
    const median = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
    assert.ok(median(pausesMs.slice(-3)) < 2 * median(pausesMs.slice(0, 3)) + 20, pausesMs.join());
  });

  it('a snapshot in use is removed at once; what runs of it goes on, and can be saved again', async () => {
    const source = await create();
    await source.commands.run('echo kept > /dev/shm/kept');
    const { snapshotId: removed } = await source.createSnapshot();
    const clone = await create(removed);
    const status = async (path: string, init?: RequestInit) => (await thaw.call(path, init)).status;
    assert.equal(await status(`/v1/snapshots/${removed}`, { method: 'DELETE' }), 204);
    assert.equal(await status(`/v1/snapshots/${removed}`), 404);
    assert.equal(await status(`/v1/snapshots/${removed}`, { method: 'DELETE' }), 404);
    await assert.rejects(create(removed), /404/);
    const { snapshotId: again } = await clone.createSnapshot();
    await Promise.all([source.kill(), clone.kill()]);
    const third = await create(again);
    assert.equal(await outputOf(third, 'cat /dev/shm/kept'), 'kept');
    await third.kill();
    assert.equal(await Sandbox.deleteSnapshot(again, connection()), true);
  });

  it('forks a running sandbox', async () => {
    const sandbox = await create();
    await sandbox.commands.run('echo shared > /dev/shm/shared');
    const response = await thaw.call(`/sandboxes/${sandbox.sandboxId}/fork`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ count: 2, timeout: 300 }),
    });
    const forks = (await response.json()) as { sandbox: { sandboxID: string } }[];
    assert.equal(forks.length, 2);
    for (const { sandbox: fork } of forks) {
      const clone = await Sandbox.connect(fork.sandboxID, connection());
      assert.equal(await outputOf(clone, 'cat /dev/shm/shared'), 'shared');
      await clone.kill();
    }
    await sandbox.kill();
  });

  it('S1, S5: a snapshot and a paused sandbox survive a restart of everything', async () => {
    const paused = await create();
    await paused.commands.run('echo before > /dev/shm/before');
    await paused.pause();
    assert.equal(await thaw.end('SIGTERM'), 0, thaw.said());
    thaw = await startThaw(dataDir, [], { THAW_BASE_WARM: '0' });
    const clone = await create(snapshotId);
    assert.equal(await outputOf(clone, 'cat /dev/shm/note'), 'kept-in-memory');
    const back = await Sandbox.connect(paused.sandboxId, connection());
    assert.equal(await outputOf(back, 'cat /dev/shm/before'), 'before');
    await Promise.all([clone.kill(), back.kill()]);
    assert.deepEqual(await thaw.vmmPids().then((pids) => pids.length <= 2), true);
  });
});
