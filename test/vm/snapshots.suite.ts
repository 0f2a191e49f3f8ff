// What the snapshots page promises (S1 to S7), on real VMs: a snapshot is all of a running sandbox at one instant, the
// sandbox goes on, and any number of independent ones start from it. Then depth, repetition, and a crash at each step.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { GuestShell } from '../../pool/guest/guest-shell.ts';
import { reclaim } from '../../pool/host/reclaim.ts';
import { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import type { SnapshotRecord } from '../../pool/snapshot/record.ts';
import type { Vm } from '../../pool/vm.ts';
import { LocalVmFactory } from '../../pool/vm-factory.ts';
import { silentLog } from '../../shared/log.ts';
import { openVmWorld, type VmWorld } from './vm-world.ts';

const shape = { memoryMb: 256, vcpus: 1 };
/** Counts in a file that is memory only, and starts no program: those are slow under emulation. */
const counter = 'exec 9<> <(:); i=0; while :; do echo $((++i)) > /dev/shm/count; read -t 0.05 -u 9; done';
const readCount = 'until read -r n < /dev/shm/count; do :; done; echo $n';

interface Sandbox {
  vm: Vm;
  shell: GuestShell;
}

describe('snapshots of running sandboxes', () => {
  let world: VmWorld;
  let templateId: string;
  const open: Sandbox[] = [];

  before(async () => {
    world = await openVmWorld();
    templateId = await world.builder.ensureTemplate(shape);
  });
  after(async () => {
    await Promise.all(open.map(({ shell }) => shell[Symbol.asyncDispose]()));
    await world?.close();
  });

  const start = async (snapshotId: string, envVars: Record<string, string> = {}): Promise<Sandbox> => {
    const vm = await world.restore(snapshotId);
    const sandbox = { vm, shell: await GuestShell.open(vm.agent, vm.secret, envVars) };
    open.push(sandbox);
    return sandbox;
  };
  const kill = async ({ vm, shell }: Sandbox) => {
    await shell[Symbol.asyncDispose]();
    await vm.destroy();
  };
  const snapshot = ({ vm }: Sandbox): Promise<SnapshotRecord> => vm.capture({ resume: true });
  const counted = async ({ shell }: Sandbox) => Number(await shell.run(readCount));

  it('S1, S5: hold memory, files and processes of one instant, and outlive their sandbox', async () => {
    const source = await start(templateId, { FROM_SOURCE: 'yes', REPLACED: 'no' });
    await source.shell.start(counter);
    const script = [
      'echo in-memory > /dev/shm/tmpfs',
      'echo not-synced > /root/unsynced',
      'echo version = 7 > /usr/lib/python3/dist-packages/thaw_installed.py',
      // A file without a name, held by a process.
      'echo held-open > /root/unlinked',
      'mkfifo /root/ask; (exec 5< /root/unlinked; rm /root/unlinked; read -r _ < /root/ask; cat <&5 > /root/answer) > /dev/null 2>&1 &',
      'until [ ! -e /root/unlinked ]; do :; done',
    ];
    await source.shell.run(script.join('\n'));
    const before = await counted(source);
    const { snapshotId } = await snapshot(source);
    await kill(source);

    // As after a restart of everything: only files are left.
    const parts = { hypervisor: world.hypervisor, image: world.image, paths: world.paths, log: silentLog };
    const restarted = new LocalVmFactory(parts);
    const vm = await restarted.restore(snapshotId, AbortSignal.timeout(60_000));
    const clone = { vm, shell: await GuestShell.open(vm.agent, vm.secret, { REPLACED: 'yes' }) };
    try {
      assert.ok((await counted(clone)) >= before);
      const output = await clone.shell.run(
        [
          'cat /dev/shm/tmpfs /root/unsynced; echo go > /root/ask',
          'until [ -s /root/answer ]; do sleep 0.1; done; cat /root/answer',
          'echo $FROM_SOURCE $REPLACED',
          'python3 -c "import thaw_installed; print(thaw_installed.version)"',
        ].join('\n'),
      );
      assert.equal(output, 'in-memory\nnot-synced\nheld-open\nyes yes\n7');
    } finally {
      await kill(clone);
    }
  });

  it('S2, S3, S4: start new sandboxes while their source goes on after a short gap', async (context) => {
    const source = await start(templateId);
    await source.shell.start(counter);
    const gap = watchGap(source);
    await gap.started;
    const record = await snapshot(source);
    const longestMs = await gap.end();
    const clone = await start(record.snapshotId);
    const atClone = await counted(clone);
    assert.notEqual(clone.vm.vmId, source.vm.vmId);
    context.diagnostic(
      `pause ${JSON.stringify(record.pauseMs)}, longest gap of a stream ${longestMs.toFixed(0)} ms`,
    );
    assert.ok(record.pauseMs!.total! < 1000 && longestMs < 1000);
    assert.ok((await counted(source)) > 0 && atClone > 0);
    const clockOf = async (sandbox: Sandbox) => {
      const sentMs = Date.now();
      const guestMs = Number(await sandbox.shell.run('date +%s%N')) / 1e6;
      return { behindMs: Math.max(0, sentMs - guestMs), aheadMs: Math.max(0, guestMs - Date.now()) };
    };
    for (const sandbox of [source, clone]) {
      const { behindMs, aheadMs } = await clockOf(sandbox);
      assert.ok(behindMs < 100 && aheadMs < 100, `the clock is ${behindMs} behind, ${aheadMs} ahead`);
    }
    await kill(clone);
    await kill(source);
  });

  it('S6: are the start of branches that know nothing of each other', async () => {
    const source = await start(templateId);
    await source.shell.run('echo prepared > /root/base');
    const { snapshotId } = await snapshot(source);
    const draw =
      'cat /proc/sys/kernel/random/uuid /proc/sys/kernel/hostname /etc/machine-id; python3 -c "import os; print(os.urandom(8).hex())"';
    const branches = await Promise.all([start(snapshotId), start(snapshotId)]);
    const [left, right] = await Promise.all(branches.map(({ shell }) => shell.run(draw)));
    const known = new Set(left!.split('\n'));
    for (const value of right!.split('\n')) assert.ok(!known.has(value), `${value} in both`);
    for (const [index, { shell }] of branches.entries())
      await shell.run(`echo ${index} > /root/mine; echo ${index} > /dev/shm/mine; sync`);
    for (const [index, { shell }] of branches.entries())
      assert.equal(
        await shell.run('cat /root/base /root/mine /dev/shm/mine'),
        `prepared\n${index}\n${index}`,
      );
    await source.shell.run('test ! -e /root/mine');
    // The source's token opens nothing in a branch.
    const [branch] = branches;
    const { host, port } = branch!.vm.agent;
    const stranger = await fetch(`http://${host}:${port}/process.Process/List`, {
      method: 'POST',
      headers: { 'x-access-token': source.shell.accessToken, 'content-type': 'application/json' },
      body: '{}',
    });
    assert.equal(stranger.status, 401);
    for (const sandbox of [...branches, source]) await kill(sandbox);
  });

  it('S7: end connections to the outside with an error, and keep those inside', async (context) => {
    const source = await start(templateId);
    await source.shell.start(connectionsProgram);
    const address = await source.vm.addressOf(3000);
    await source.shell.run('until [ -s /dev/shm/listening ]; do sleep 0.1; done');
    const socket = connect(address.port, address.host);
    await once(socket, 'connect');
    socket.write('hello');
    await once(socket, 'data');
    const { snapshotId } = await snapshot(source);
    const startMs = performance.now();
    const clone = await start(snapshotId);
    const states =
      'until [ -s /dev/shm/outside ]; do sleep 0.05; done; cat /dev/shm/outside /dev/shm/inside 2>/dev/null; true';
    const ended = await clone.shell.run(states);
    context.diagnostic(
      `${ended} ${(performance.now() - startMs).toFixed(0)} ms after the restore was asked for`,
    );
    assert.match(ended, /^(ConnectionAbortedError|ConnectionResetError)/);
    assert.doesNotMatch(ended, /inside ended/);
    assert.ok(performance.now() - startMs < 5_000);
    // In the source both go on.
    socket.write('again');
    assert.equal(String((await once(socket, 'data'))[0]), 'again');
    await source.shell.run('test ! -e /dev/shm/outside');
    // A new connection to the clone's server is served.
    const fresh = connect((await clone.vm.addressOf(3000)).port, '127.0.0.1');
    fresh.write('new');
    assert.equal(String((await once(fresh, 'data'))[0]), 'new');
    for (const each of [socket, fresh]) each.destroy();
    await kill(clone);
    await kill(source);
  });

  it('of clones of snapshots, ten deep, are as fast and need no ancestor', async (context) => {
    let sandbox = await start(templateId);
    await sandbox.shell.start(counter);
    const pauses: number[] = [];
    const chain: string[] = [];
    let last = 0;
    for (let depth = 1; depth <= 10; depth++) {
      await sandbox.shell.run(`echo ${depth} >> /root/depths; echo ${depth} >> /dev/shm/depths; sync`);
      const record = await snapshot(sandbox);
      assert.deepEqual([record.depth, record.base], [depth, templateId]);
      pauses.push(record.pauseMs!.total!);
      await kill(sandbox);
      chain.push(record.snapshotId);
      sandbox = await start(record.snapshotId);
      const now = await counted(sandbox);
      assert.ok(now >= last);
      last = now;
      // Only the newest is left at each moment.
      const parent = chain.at(-2);
      if (parent) await world.factory.library.remove(parent);
    }
    const expected = Array.from({ length: 10 }, (_, index) => index + 1).join('\n');
    const read = 'echo 3 > /proc/sys/vm/drop_caches; cat /root/depths; echo -; cat /dev/shm/depths';
    assert.equal(await sandbox.shell.run(read), `${expected}\n-\n${expected}`);
    context.diagnostic(`pauses ${pauses.map((pause) => pause.toFixed(0)).join(' ')} ms`);
    const early = median(pauses.slice(0, 3));
    assert.ok(median(pauses.slice(-3)) < 2 * early + 20, pauses.join());
    await world.factory.library.materialise(chain.at(-1)!);
    const whole = await start(chain.at(-1)!);
    assert.equal(await whole.shell.run(read), `${expected}\n-\n${expected}`);
    assert.equal((await snapshot(whole)).base, chain.at(-1));
    for (const each of [whole, sandbox]) await kill(each);
  });

  it('row 23: keep all of twenty rounds of write, pause, resume', async () => {
    let sandbox = await start(templateId);
    for (let round = 1; round <= 20; round++) {
      await sandbox.shell.run(`echo ${round} >> /root/rounds; echo ${round} >> /dev/shm/rounds`);
      const record = await sandbox.vm.capture({ resume: false });
      await kill(sandbox);
      sandbox = await start(record.snapshotId);
      // Restored once: never worth a page file of its own.
      assert.equal((await world.factory.library.record(record.snapshotId)).form, 'delta');
    }
    const expected = Array.from({ length: 20 }, (_, index) => index + 1).join('\n');
    assert.equal(
      await sandbox.shell.run('cat /root/rounds; echo -; cat /dev/shm/rounds'),
      `${expected}\n-\n${expected}`,
    );
    await kill(sandbox);
  });

  it('row 22: are whole or not there when Thaw dies at any step', async (context) => {
    const before = new Set(await readdir(world.paths.snapshotsDir));
    for (const stage of ['hold', 'pause', 'copy', 'resume', 'write', 'layers', 'record']) {
      const child = spawn(
        process.execPath,
        [join(import.meta.dirname, 'capture-and-die.ts'), world.dataDir, templateId, stage],
        { stdio: 'inherit' },
      );
      const [exitCode, signal] = await once(child, 'exit');
      assert.equal(signal, 'SIGKILL', `${stage}: ended with ${exitCode}`);
      const reclaimed = await reclaim({ paths: world.paths, log: silentLog });
      const kinds = reclaimed.map(({ kind }) => kind);
      assert.ok(kinds.includes('process') && kinds.includes('run-directory'), kinds.join());
      const added = (await readdir(world.paths.snapshotsDir)).filter((name) => !before.has(name));
      context.diagnostic(`${stage}: ${added.length} snapshots, reclaimed ${kinds.join(' ')}`);
      assert.equal(added.length, stage === 'record' ? 1 : 0, stage);
      for (const snapshotId of added) {
        const clone = await start(snapshotId);
        assert.equal(await clone.shell.run('cat /dev/shm/mark'), 'marked');
        await kill(clone);
        await new SnapshotLibrary({ paths: world.paths, log: silentLog }).remove(snapshotId);
      }
    }
  });

  /** The longest time between two lines of a stream that began before a snapshot and is still open. */
  function watchGap(sandbox: Sandbox) {
    let lastMs = 0;
    let longestMs = 0;
    let ticks = 0;
    const started = Promise.withResolvers<void>();
    const script = 'exec 9<> <(:); while [ ! -e /dev/shm/stop ]; do echo .; read -t 0.01 -u 9; done; true';
    const ended = sandbox.shell.run(script, () => {
      const nowMs = performance.now();
      if (ticks++ > 0) longestMs = Math.max(longestMs, nowMs - lastMs);
      lastMs = nowMs;
      if (ticks === 10) {
        longestMs = 0;
        started.resolve();
      }
    });
    ended.catch(started.reject);
    return {
      started: started.promise,
      end: async () => {
        await sandbox.shell.run('touch /dev/shm/stop');
        await ended;
        return longestMs;
      },
    };
  }
});

const median = (values: number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!;

/** Echoes on port 3000 and says how a connection from outside ended; a pair of sockets inside waits for ever. */
const connectionsProgram = `exec python3 -c "
import socket, threading
server = socket.create_server(('0.0.0.0', 3000))
def note(name, text): open('/dev/shm/' + name, 'w').write(text + chr(10))
def echo(peer, address):
    try:
        while True:
            data = peer.recv(100)
            if not data: break
            peer.sendall(data)
    except OSError as error:
        note('outside', type(error).__name__)
inner = socket.create_server(('127.0.0.1', 3001))
one = socket.create_connection(('127.0.0.1', 3001)); other, _ = inner.accept()
def wait():
    try: one.recv(1)
    except OSError: pass
    note('inside', 'inside ended')
threading.Thread(target=wait, daemon=True).start()
note('listening', 'yes')
while True: threading.Thread(target=echo, args=server.accept(), daemon=True).start()
"`;
