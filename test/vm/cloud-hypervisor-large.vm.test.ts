// A guest whose memory lies in two pieces, below and above the hole for devices, with two CPUs, on real Cloud Hypervisor:
// captured, cloned, saved as it runs, cloned again. `npm run test:metal` runs it where the host has no KVM.
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { ControlClient } from '../../pool/guest/control-client.ts';
import { GuestShell } from '../../pool/guest/guest-shell.ts';
import { handshake } from '../../pool/guest/handshake.ts';
import { capturedFilesIn } from '../../pool/host/paths.ts';
import { lowMemoryBytes } from '../../pool/hypervisor/cloud-hypervisor/device-state.ts';
import type { Machine, PageDelta } from '../../pool/hypervisor/hypervisor.ts';
import { newVmId } from '../../shared/ids.ts';
import { whyNotHere } from './cloud-hypervisor-here.ts';
import type { RowsWorld } from './cloud-hypervisor-rows.ts';
import { openCloudHypervisorWorld } from './cloud-hypervisor-world.ts';

const shape = { memoryMb: 3584, vcpus: 2 };
/** The kernel writes zeros into all of it as it boots. */
const timeoutMs = 300_000;
const nonces = { template: 'a'.repeat(32), saved: 'b'.repeat(32) };
const reason = await whyNotHere();

describe(
  'a guest of more than 3 GiB on Cloud Hypervisor',
  reason === undefined ? {} : { skip: reason },
  () => {
    let world: RowsWorld;
    const machines: Machine[] = [];
    before(async () => {
      world = await openCloudHypervisorWorld();
    });
    after(async () => {
      for (const machine of machines) await machine.destroy();
      await world?.close();
    });

    const newRun = async () => {
      const vmId = newVmId();
      const runDir = world.paths.vmDir(vmId);
      await mkdir(runDir, { recursive: true });
      return { vmId, runDir, shape, image: world.image };
    };
    const greeted = async (machine: Machine, nonce: string) => {
      machines.push(machine);
      const control = new ControlClient(await machine.openControl());
      const { secret, ports } = await handshake(control, machine.vmId, nonce, timeoutMs);
      return { control, shell: await GuestShell.open(await machine.addressOf(ports.agent), secret) };
    };
    const sumsOf = (shell: GuestShell) => shell.run('nproc; cd /dev/shm; sha256sum *');
    const fill = (name: string) => `head -c 10000000 /dev/urandom > /dev/shm/${name}`;

    it('keeps all of its memory over a capture, a clone, a snapshot of it and a clone of that', async () => {
      const { hypervisor, dataDir } = world;
      const from = capturedFilesIn(join(dataDir, 'large'));
      await mkdir(join(dataDir, 'large'));
      const booted = await hypervisor.boot({ ...(await newRun()), pagesPath: from.pagesPath });
      const template = await greeted(booted, '');
      await template.shell.run(fill('first'));
      const before = await sumsOf(template.shell);
      assert.match(before, /^2\n/);
      await template.control.request({ op: 'seal', nonce: nonces.template }, timeoutMs);
      await booted.captureInPlace(from);

      const cloned = await hypervisor.restore({ ...(await newRun()), from, memory: 'private' });
      const clone = await greeted(cloned, nonces.template);
      assert.equal(await sumsOf(clone.shell), before);
      await clone.shell.run(fill('second'));
      const after = await sumsOf(clone.shell);
      await clone.control.request({ op: 'seal', nonce: nonces.saved }, timeoutMs);
      const files = { devicesPath: join(dataDir, 'saved-devices'), diskPath: join(dataDir, 'saved-disk') };
      const target = { ...files, deltaPath: join(dataDir, 'saved-delta') };
      const delta: PageDelta = await cloned.captureClone(target, { resume: true });
      assert.ok(delta.runs.some(({ offsetBytes }) => offsetBytes >= lowMemoryBytes));

      const request = { ...(await newRun()), from: { ...from, ...files }, delta, memory: 'private' as const };
      const second = await greeted(await hypervisor.restore(request), nonces.saved);
      assert.equal(await sumsOf(second.shell), after);
    });
  },
);
