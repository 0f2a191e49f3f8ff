// Owns rows of the failure matrix on Cloud Hypervisor: each test opens with its number there. Called with the real thing
// by a test of real VMs, with the stand-in for the API by one that runs everywhere; a row that needs guest code to run
// says so. Invariant: after each row the VMs of it are gone.
import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { availableParallelism } from 'node:os';
import { after, afterEach, before, describe, it } from 'node:test';
import { request } from 'undici';
import { Capacity } from '../../pool/capacity.ts';
import { GuestShell } from '../../pool/guest/guest-shell.ts';
import { readStartTime } from '../../pool/host/process-table.ts';
import type { CloudHypervisor } from '../../pool/hypervisor/cloud-hypervisor/cloud-hypervisor.ts';
import type { Hypervisor, Machine } from '../../pool/hypervisor/hypervisor.ts';
import { Pool } from '../../pool/pool.ts';
import { readRecord, writeRecord } from '../../pool/snapshot/record.ts';
import type { Vm, VmFactory } from '../../pool/vm.ts';
import { LocalVmFactory } from '../../pool/vm-factory.ts';
import { withDeadline } from '../../shared/deadline.ts';
import { silentLog } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import { drawFromClones, nodeFunction, repeatsIn, worstSkewMs } from './draws.ts';
import { eventually } from './thaw-process.ts';
import type { VmWorld } from './vm-world.ts';

export interface RowsWorld extends Omit<VmWorld, 'hypervisor'> {
  hypervisor: CloudHypervisor;
  /** Another driver on the same files that keeps nothing ready. */
  unready(): CloudHypervisor;
}

const restoreTimeoutMs = 60_000;
const endTimeoutMs = 30_000;
const silenceMs = 3_000;
const maxSkewMs = 100;
const stormSize = 8;
const samples = 30;

export function describeRows(openWorld: () => Promise<RowsWorld>, guest: 'runs' | 'stands-in'): void {
  const running = guest === 'runs' ? {} : { skip: 'the stand-in runs no guest code' };

  describe('rows of the failure matrix on Cloud Hypervisor', () => {
    let world: RowsWorld;
    let base: string;
    const vms: Vm[] = [];
    const restore = async () => {
      const vm = await world.factory.restore(base, AbortSignal.timeout(restoreTimeoutMs));
      vms.push(vm);
      return vm;
    };
    const answers = async ({ agent }: Vm) =>
      (await request(`http://${agent.host}:${agent.port}/health`, { reset: true })).statusCode === 204;
    const shellOf = (vm: Vm) => GuestShell.open(vm.agent, vm.secret);

    before(async () => {
      world = await openWorld();
      base = await world.builder.ensureTemplate({ memoryMb: 256, vcpus: 1 });
    });
    afterEach(async () => {
      await Promise.all(vms.splice(0).map((vm) => vm.destroy()));
    });
    after(() => world?.close());

    it('1: a VMM that crashes while warm leaves the pool and is replaced before anybody sees it', async () => {
      await world.factory.load(base);
      const made: Vm[] = [];
      const factory: VmFactory = {
        memoryMbOf: (snapshotId) => world.factory.memoryMbOf(snapshotId),
        async restore(snapshotId, signal) {
          const vm = await world.factory.restore(snapshotId, signal);
          made.push(vm);
          return vm;
        },
      };
      const capacity = new Capacity({ memoryMb: 4096, vms: 8 });
      const pool = new Pool({ factory, capacity, log: silentLog, maxConcurrentRestores: 2, maxWaiters: 8 });
      const warm = (count: number) =>
        eventually(
          'a warm VM',
          async () => made.length === count && pool.stats().vms.warm === 1,
          restoreTimeoutMs,
        );
      try {
        pool.configure(base, { min: 1, max: 2, recycle: 'reuse', concurrency: 1 });
        for (const [round, signal] of (['SIGKILL', 'SIGABRT'] as const).entries()) {
          await warm(round + 1);
          const crashed = made.at(-1)!;
          process.kill(crashed.pid, signal);
          await withDeadline('the end of the VMM', endTimeoutMs, crashed.ended);
          const lease = await pool.acquire(base, { timeoutMs: restoreTimeoutMs });
          assert.notEqual(lease.vm.pid, crashed.pid);
          assert.ok(await answers(lease.vm));
          lease.release();
        }
      } finally {
        await pool.drain(restoreTimeoutMs);
      }
    });

    it('3: a guest that hangs after a good restore is never handed out, and is destroyed', async () => {
      const stopped: Machine[] = [];
      const factory = new LocalVmFactory({
        ...world,
        log: silentLog,
        hypervisor: stoppedAfterRestore(world.hypervisor, stopped),
        handshakeTimeoutMs: 1_000,
      });
      const before = await readdir(world.paths.vmsDir);
      await assert.rejects(factory.restore(base, AbortSignal.timeout(restoreTimeoutMs)), {
        code: 'restore-failed',
      });
      assert.equal(stopped.length, 1);
      assert.equal(await readStartTime(stopped[0]!.pid), undefined);
      const left = (await readdir(world.paths.vmsDir)).filter((name) => !before.includes(name));
      assert.ok(!left.includes(stopped[0]!.vmId), 'its run directory is left');
    });

    it('3: a guest that panics ends its VMM, and is not booted again', running, async () => {
      const vm = await restore();
      const shell = await shellOf(vm);
      await shell.start('echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger').catch(() => {});
      assert.match(await withDeadline('the panic', endTimeoutMs, vm.ended), /the VMM ended/);
    });

    it(
      '18: a guest reaches neither its host, nor other guests, nor metadata, over IPv4 or IPv6',
      running,
      async () => {
        const [one, other] = [await restore(), await restore()];
        let heard = 0;
        const service = createServer((socket) => {
          heard += 1;
          socket.destroy();
        });
        await new Promise<void>((resolve) => service.listen(0, '::', resolve));
        const { port } = service.address() as { port: number };
        const hostLink = nextLower(one.agent.host);
        const targets = [
          [hostLink, port],
          ['10.0.2.2', port],
          ['127.0.0.1', port],
          [`::ffff:${hostLink}`, port],
          ['fe80::1%eth0', port],
          [other.agent.host, other.agent.port],
          ['169.254.169.254', 80],
          ['192.168.1.1', 80],
        ] as const;
        const shell = await shellOf(one);
        for (const [host, targetPort] of targets)
          assert.equal(await shell.run(tryToConnect(host, targetPort)), 'closed', `${host} ${targetPort}`);
        assert.equal(heard, 0, 'the host was reached');
        service.close();
        assert.ok(await answers(other));
      },
    );

    it(
      '19: a neighbour that takes all CPU it can get at most doubles the time of others',
      running,
      async () => {
        const [victim, noisy] = [await restore(), await restore()];
        await timesOf(victim, samples);
        const quietMs = await timesOf(victim, samples);
        const shell = await shellOf(noisy);
        for (let hog = 0; hog < 4; hog++) await shell.start('while :; do :; done');
        const besideMs = await timesOf(victim, samples);
        // Two CPUs are the noisy one's and everybody else's: there the emulated machine itself is the neighbour.
        const allowed = availableParallelism() > 2 ? 2 : 6;
        const worst = (times: number[]) => times.toSorted((a, b) => a - b)[Math.floor(samples * 0.9)]!;
        assert.ok(
          worst(besideMs) <= allowed * Math.max(worst(quietMs), 10),
          `p90 ${worst(besideMs).toFixed(1)} ms beside it, ${worst(quietMs).toFixed(1)} ms alone`,
        );
      },
    );

    it('20, 21: clones share no random value, and none has a stale clock', running, async () => {
      const snapshotId = await world.build({ name: 'draw', runtime: 'node' }, { 'index.mjs': nodeFunction });
      const draws = await drawFromClones(world, snapshotId, stormSize);
      for (const [source, repeats] of repeatsIn(draws)) assert.equal(repeats, 0, `${source} repeats`);
      assert.ok(worstSkewMs(draws) < maxSkewMs, `a clock is off by ${worstSkewMs(draws)} ms`);
    });

    it('24: clones of one snapshot, all at once, have addresses of their own', async () => {
      const storm = await Promise.all(Array.from({ length: stormSize }, restore));
      assert.equal(new Set(storm.map(({ agent }) => agent.host)).size, stormSize);
      for (const vm of storm) assert.ok(await answers(vm));
      if (guest === 'stands-in') return;
      for (const vm of storm) assert.equal(await (await shellOf(vm)).run('hostname'), vm.vmId);
    });

    it('26: a restore that finds no process ready is counted', async () => {
      const counted = async () =>
        (await metrics.fallbacks.get()).values.find(({ labels }) => labels.kind === 'no-spare-vmm')?.value ??
        0;
      const before = await counted();
      const hypervisor = world.unready();
      const factory = new LocalVmFactory({ ...world, log: silentLog, hypervisor });
      const vm = await factory.restore(base, AbortSignal.timeout(restoreTimeoutMs));
      await vm.destroy();
      await hypervisor.close();
      assert.equal(await counted(), before + 1);
    });

    it('28: a snapshot of another release, CPU or machine is refused with the reason', async () => {
      const dir = world.paths.snapshotDir(base);
      const record = (await readRecord(dir))!;
      const factory = () => new LocalVmFactory({ ...world, log: silentLog });
      try {
        for (const [key, value] of Object.entries({
          hypervisorVersion: '54.0.0',
          cpu: 'another',
          machine: 'thaw-0',
          hypervisor: 'qemu',
        })) {
          await writeRecord(dir, { ...record, compatibility: { ...record.compatibility, [key]: value } });
          await assert.rejects(factory().load(base), {
            code: 'incompatible',
            message: new RegExp(`${key} ${value} ≠`),
          });
        }
      } finally {
        await writeRecord(dir, record);
      }
      await factory().load(base);
    });
  });
}

/** The VMM stands still as soon as it has restored: what a hung guest looks like from outside. */
function stoppedAfterRestore(hypervisor: Hypervisor, stopped: Machine[]): Hypervisor {
  return {
    name: hypervisor.name,
    capabilities: hypervisor.capabilities,
    compatibility: (image) => hypervisor.compatibility(image),
    boot: (given, signal) => hypervisor.boot(given, signal),
    async restore(given, signal) {
      const machine = await hypervisor.restore(given, signal);
      // Its first call gets through; what is asked of it then has no answer.
      const control = await machine.openControl();
      process.kill(machine.pid, 'SIGSTOP');
      stopped.push(machine);
      return Object.assign(Object.create(machine), {
        vmId: machine.vmId,
        pid: machine.pid,
        exited: machine.exited,
        openControl: async () => control,
        destroy: () => machine.destroy(),
      });
    },
  };
}

/** In bash, which needs no program for it. */
const tryToConnect = (host: string, port: number): string =>
  `timeout ${silenceMs / 1000} bash -c 'exec 3<>"/dev/tcp/${host}/${port}"' 2>/dev/null && echo open || echo closed`;

/** The host's end of a slot's link: both are a pair. */
function nextLower(address: string): string {
  const [a, b, c, d] = address.split('.').map(Number);
  return `${a}.${b}.${c}.${d! - 1}`;
}

async function timesOf({ agent }: Vm, count: number): Promise<number[]> {
  const times: number[] = [];
  for (let sample = 0; sample < count; sample++) {
    const startMs = performance.now();
    await (await request(`http://${agent.host}:${agent.port}/health`, { reset: true })).body.dump();
    times.push(performance.now() - startMs);
  }
  return times;
}

/** Network namespaces and control groups of this host, and VMs' processes, for those who look for what is left. */
export async function leftovers(): Promise<string[]> {
  const namespaces = await readdir('/run/netns').catch(() => []);
  const tables = await readFile('/proc/net/dev', 'utf8');
  const links = [...tables.matchAll(/^\s*(tv-\d+):/gm)].map(([, name]) => name!);
  const groups = await readdir('/sys/fs/cgroup').catch(() => []);
  const ours = groups.filter((name) => name.startsWith('thaw-'));
  const vmGroups = await Promise.all(ours.map((name) => readdir(`/sys/fs/cgroup/${name}`)));
  const inGroups = vmGroups.flat().filter((name) => name.startsWith('vm-'));
  return [...namespaces.filter((name) => name.startsWith('thaw-')), ...links, ...inGroups];
}
