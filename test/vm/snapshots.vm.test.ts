// Snapshots of running VMs without a gateway before them: what only shows from near (the gap in a stream, clocks,
// connections inside), and a crash of Thaw at each step of a capture. What users see of them is sandbox-snapshots.vm.test.ts's.
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

describe('snapshots of running VMs', () => {
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
    // The source's token opens nothing in a clone.
    const { host, port } = clone.vm.agent;
    const stranger = await fetch(`http://${host}:${port}/process.Process/List`, {
      method: 'POST',
      headers: { 'x-access-token': source.shell.accessToken, 'content-type': 'application/json' },
      body: '{}',
    });
    assert.equal(stranger.status, 401);
    await kill(clone);
    await kill(source);
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
