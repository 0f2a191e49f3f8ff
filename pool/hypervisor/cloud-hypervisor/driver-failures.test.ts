// The driver when its VMM refuses, dies or is not what it should be, at every step: on the stand-in for the API, because
// that can be told to. What must hold each time: a typed error, no process, no slot, no file of a capture.
import assert from 'node:assert/strict';
import { access, copyFile, mkdir, readFile, truncate, unlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { newVmId } from '../../../shared/ids.ts';
import { eventually } from '../../../test/vm/thaw-process.ts';
import { ControlClient } from '../../guest/control-client.ts';
import { handshake } from '../../guest/handshake.ts';
import { readStartTime } from '../../host/process-table.ts';
import type { CapturedFiles, Machine } from '../hypervisor.ts';
import { ApiClient } from './api-client.ts';
import type { Refusals } from './api-stand-in.ts';
import { StandInWorld } from './stand-in-world.ts';
import { names } from './vm-config.ts';

const refusal = (...chain: string[]) => ({ status: 500, chain: ['Error from API', ...chain] });

describe('the driver of Cloud Hypervisor when something fails', () => {
  let world: StandInWorld;
  let files: CapturedFiles;
  const targetIn = (name: string) => ({
    deltaPath: join(world.dir, `${name}-delta`),
    devicesPath: join(world.dir, `${name}-devices`),
    diskPath: join(world.dir, `${name}-disk`),
  });
  const started: number[] = [];
  /** Restores expecting a failure; what the VMM's start left is looked at by `nothingIsLeft`. */
  const refused = async (from: CapturedFiles, code: string, message: RegExp) => {
    await assert.rejects(world.restore(from), (error: Error & { code?: string }) => {
      assert.equal(error.code, code, error.message);
      assert.match(error.message, message);
      return true;
    });
    await nothingIsLeft();
  };
  const nothingIsLeft = async () => {
    assert.equal(world.slots.taken.size, 0, 'a slot is still taken');
    for (const pid of started) assert.equal(await readStartTime(pid), undefined, `process ${pid} lives`);
  };
  const clone = async (refusals: Refusals = {}): Promise<Machine> => {
    world.refuse(refusals);
    const machine = await world.restore(files);
    started.push(machine.pid);
    return machine;
  };
  const noFileOf = async (target: object) => {
    for (const path of Object.values(target)) await assert.rejects(access(path), path);
  };
  const copied = async (name: string): Promise<CapturedFiles> => {
    const dir = join(world.dir, name);
    await mkdir(dir);
    const copy = { ...files };
    for (const key of ['pagesPath', 'devicesPath', 'diskPath'] as const) {
      copy[key] = join(dir, key);
      await copyFile(files[key], copy[key]);
    }
    return copy;
  };

  before(async () => {
    world = await StandInWorld.open();
    const booted = await world.boot('template');
    await booted.machine.captureInPlace(booted.files);
    files = booted.files;
  });
  afterEach(() => world.refuse({}));
  after(() => world[Symbol.asyncDispose]());

  it('refuses a release that is too old, before it holds a VM', async () => {
    world.slots.environment.THAW_STAND_IN_VERSION = '52.0.0';
    await refused(files, 'incompatible', /52\.0\.0 is too old/);
    delete world.slots.environment.THAW_STAND_IN_VERSION;
  });

  for (const [call, how] of [
    ['vmm.ping', 'die'],
    ['vm.restore', 'die'],
  ] as const)
    it(`leaves nothing of a VMM that dies of ${call}`, async () => {
      world.refuse({ [call]: how });
      await refused(files, call === 'vmm.ping' ? 'hypervisor-failed' : 'restore-failed', /./);
    });

  it('types a refused restore and leaves nothing', async () => {
    world.refuse({
      'vm.restore': refusal('Cannot open disk path', 'No such file or directory (os error 2)'),
    });
    await refused(files, 'restore-failed', /the disk is missing/);
    world.refuse({ 'vm.restore': refusal('Error checking CPUID compatibility') });
    await refused(files, 'incompatible', /lacks features/);
  });

  it('refuses missing and short files before a VMM would die of them', async () => {
    const missing = await copied('missing');
    await unlink(missing.pagesPath);
    await refused(missing, 'restore-failed', /pagesPath/);
    const short = await copied('short');
    await truncate(short.pagesPath, 4096);
    await refused(short, 'restore-failed', /has 4096 bytes, not/);
    const smallDisk = await copied('small-disk');
    await truncate(smallDisk.diskPath, 512);
    await refused(smallDisk, 'restore-failed', /the disk .* has 512 bytes/);
  });

  it('refuses device state that is torn or names its memory twice', async () => {
    const torn = await copied('torn');
    await truncate(torn.devicesPath, 100);
    await refused(torn, 'restore-failed', /torn/);
    await writeFile(torn.devicesPath, (await readFile(files.devicesPath, 'utf8')).replace('"format"', '"f"'));
    await refused(torn, 'restore-failed', /torn/);
  });

  it('ends a clone whose memory is another file: a guest that resets is no guest', async () => {
    const wrong = await copied('wrong');
    const { size } = await import('node:fs').then(({ statSync }) => statSync(wrong.pagesPath));
    await truncate(wrong.pagesPath, 0);
    await truncate(wrong.pagesPath, size);
    const machine = await world.restore(wrong);
    started.push(machine.pid);
    await assert.rejects(machine.openControl(), { code: 'hypervisor-failed' });
    await machine.destroy();
    await nothingIsLeft();
  });

  it('finds a stale socket in its way and says so', async () => {
    const vmId = newVmId();
    const runDir = await world.runDirOf(vmId);
    world.refuse({
      'vm.restore': refusal(
        'Cannot create virtio-vsock backend',
        'Error binding to the host-side Unix socket',
        'Address already in use (os error 98)',
      ),
    });
    const shape = { memoryMb: 16, vcpus: 1 };
    await assert.rejects(
      world.hypervisor.restore({ vmId, shape, image: world.image, runDir, from: files, memory: 'private' }),
      { code: 'restore-failed', message: /stale socket/ },
    );
    await nothingIsLeft();
  });

  for (const [call, how] of [
    ['vm.pause', 'die'],
    ['vm.snapshot', 'die'],
    ['vm.resume', 'die'],
    ['vm.pause', refusal('the guest does not stop')],
    ['vm.snapshot', refusal('I/O error', 'No space left on device (os error 28)')],
  ] as const)
    it(`leaves no file of a capture that ${how === 'die' ? 'ends its VMM' : 'is refused'} at ${call}`, async () => {
      const machine = await clone({ [call]: how });
      const target = targetIn(`${call}-${how === 'die'}`);
      await assert.rejects(
        machine.captureClone(target, { resume: true }),
        (error: Error & { code: string }) => ['hypervisor-failed', 'no-space'].includes(error.code),
      );
      await noFileOf(target);
      await machine.destroy();
      await nothingIsLeft();
    });

  it('does not take a snapshot with memory for one without', async () => {
    // An earlier release would write the file that is there already.
    const machine = await clone({ 'vm.snapshot': { status: 204, chain: [] } });
    const target = targetIn('with-memory');
    await assert.rejects(machine.captureClone(target, { resume: true }), { code: 'hypervisor-failed' });
    await noFileOf(target);
    await machine.destroy();
    await nothingIsLeft();
  });

  for (const call of ['vm.pause', 'vm.snapshot'] as const)
    it(`types the death of a template's VMM at ${call}`, async () => {
      world.refuse({ [call]: 'die' });
      const booted = await world.boot(`dies-at-${call}`);
      started.push(booted.machine.pid);
      await assert.rejects(booted.machine.captureInPlace(booted.files), { code: 'hypervisor-failed' });
      await booted.machine.destroy();
      await nothingIsLeft();
    });

  it('never gives out a spare that has ended', async () => {
    world.refuse({});
    const driver = world.driver(1);
    await driver.warm();
    const [spare] = await world.spareVmms();
    process.kill(spare!, 'SIGKILL');
    const machine = await world.restore(files, driver);
    started.push(machine.pid, spare!);
    assert.notEqual(machine.pid, spare!);
    await machine.openControl();
    await machine.destroy();
    await driver.close();
    await nothingIsLeft();
    assert.deepEqual(await world.spareVmms(), []);
  });

  it('makes the next spare when the VM is ready for use, not beside its restore', async () => {
    world.refuse({});
    const driver = world.driver(1);
    await driver.warm();
    const [spare] = await world.spareVmms();
    const machine = await world.restore(files, driver);
    started.push(machine.pid);
    assert.equal(machine.pid, spare!);
    await new ControlClient(await machine.openControl()).request({ op: 'health' }, 5_000);
    assert.deepEqual(await world.spareVmms(), []);
    machine.answered!();
    const next = await eventually('the next spare', async () => (await world.spareVmms())[0]);
    started.push(next);
    await machine.destroy();
    await driver.close();
    await nothingIsLeft();
  });

  it('restores what a clone had changed before its devices are made', async () => {
    const machine = await clone();
    const control = new ControlClient(await machine.openControl());
    const nonce = 'd'.repeat(32);
    await control.request({ op: 'seal', nonce }, 5_000);
    const target = targetIn('changed');
    const delta = await machine.captureClone(target, { resume: true });
    const from = { ...files, devicesPath: target.devicesPath, diskPath: target.diskPath };
    const second = await world.restore(from, world.hypervisor, delta);
    await handshake(new ControlClient(await second.openControl()), second.vmId, nonce, 5_000);
    await machine.destroy();
    await second.destroy();
  });

  it('leaves the vsock, configuration and devices of a snapshot as they are', async () => {
    const before = await readFile(files.devicesPath, 'utf8');
    const machine = await clone();
    await machine.captureClone(targetIn('whole'), { resume: true });
    assert.equal(await readFile(files.devicesPath, 'utf8'), before);
    const written = JSON.parse(await readFile(targetIn('whole').devicesPath, 'utf8')) as {
      config: { vsock: { socket: string }; payload: { kernel: string } };
    };
    assert.equal(written.config.vsock.socket, names.vsock);
    await machine.destroy();
  });
});

describe('the client of the API', () => {
  it('ends the process when a call has no answer in time, and sends no chunked body', async () => {
    const world = await StandInWorld.open();
    const socketPath = join(world.dir, 'silent');
    const heard: Record<string, unknown>[] = [];
    const server = createServer((request) => void heard.push({ url: request.url, ...request.headers }));
    await new Promise<void>((resolve) => server.listen(socketPath, resolve));
    let expired = 0;
    const client = new ApiClient(socketPath, () => expired++, { actionMs: 50, longActionMs: 50 });
    await assert.rejects(client.resume(), { code: 'deadline-exceeded' });
    assert.equal(expired, 1);
    await client.close();
    const other = new ApiClient(socketPath, () => expired++, { actionMs: 50, longActionMs: 50 });
    await assert.rejects(other.snapshot('file://to'), { code: 'deadline-exceeded' });
    await other.close();
    server.closeAllConnections();
    server.close();
    assert.deepEqual(
      heard.map((each) => [each.url, each['content-length'], each['transfer-encoding']]),
      [
        ['/api/v1/vm.resume', '0', undefined],
        ['/api/v1/vm.snapshot', '31', undefined],
      ],
    );
    await world[Symbol.asyncDispose]();
  });
});
