// Owns the choice of hypervisor when configuration says `auto`: KVM is believed only when the real guest kernel booted
// under it, because a /dev/kvm that exists may not run it. The answer is remembered with what it depends on.
// Invariant: `process` is never chosen here; the reason for the choice is kept for `thaw doctor`.
import { access, constants, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { Cleanup } from '../../shared/cleanup.ts';
import { newVmId } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import { ControlClient } from '../guest/control-client.ts';
import { handshake } from '../guest/handshake.ts';
import type { NetworkSlots } from '../host/network-slots.ts';
import type { Paths } from '../host/paths.ts';
import type { GuestImage, Hypervisor } from './hypervisor.ts';
import { createQemuHypervisor } from './qemu/qemu-hypervisor.ts';

const choiceSchema = Type.Object({
  accelerator: Type.Union([Type.Literal('kvm'), Type.Literal('tcg')]),
  reason: Type.String(),
  /** What the answer depends on; another value means: try again. */
  inputs: Type.String(),
  decidedAt: Type.String(),
});

export type Choice = Static<typeof choiceSchema>;

export interface ChooseOptions {
  image: GuestImage;
  paths: Paths;
  log: Log;
  /** How long the guest may take to answer under KVM; a working one needs one or two seconds. */
  trialTimeoutMs?: number;
  onProgress?: (step: string) => void;
  /** For QEMU's VMs that may get a way out. */
  slots?: NetworkSlots | undefined;
  /** Replaced in tests. */
  kvmDevice?: string;
}

/** @returns the driver to use and why; decides by trial at most once per kernel, QEMU and image. */
export async function chooseHypervisor(
  options: ChooseOptions,
): Promise<{ hypervisor: Hypervisor; choice: Choice }> {
  const { log, slots } = options;
  const tcg = createQemuHypervisor({ accelerator: 'tcg', log, slots });
  const { hypervisorVersion } = await tcg.compatibility(options.image);
  const device = options.kvmDevice ?? '/dev/kvm';
  const present = await usable(device);
  const inputs = JSON.stringify([release(), hypervisorVersion, options.image.digest, present]);
  const remembered = await rememberedChoice(options.paths.hypervisorChoice);
  const choice = remembered?.inputs === inputs ? remembered : await decide(options, device, present, inputs);
  const { accelerator } = choice;
  return {
    hypervisor: accelerator === 'tcg' ? tcg : createQemuHypervisor({ accelerator, log, slots }),
    choice,
  };
}

/** The remembered answer of the last start; for `thaw doctor`. */
export async function rememberedChoice(path: string): Promise<Choice | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(path, 'utf8'));
    return Value.Check(choiceSchema, value) ? value : undefined;
  } catch {
    return undefined;
  }
}

async function decide(
  options: ChooseOptions,
  device: string,
  present: boolean,
  inputs: string,
): Promise<Choice> {
  const outcome = present ? await trialBoot(options) : `${device} is absent or not accessible`;
  const choice: Choice = {
    accelerator: outcome === 'booted' ? 'kvm' : 'tcg',
    reason: outcome === 'booted' ? 'the guest kernel booted under KVM' : `software emulation: ${outcome}`,
    inputs,
    decidedAt: new Date().toISOString(),
  };
  await mkdir(options.paths.dataDir, { recursive: true });
  await writeFile(options.paths.hypervisorChoice, JSON.stringify(choice, null, 2));
  return choice;
}

/** @returns 'booted', or what went wrong in one line. */
async function trialBoot(options: ChooseOptions): Promise<string> {
  const { image, paths, trialTimeoutMs = 15_000 } = options;
  options.onProgress?.('trying KVM with the real guest kernel');
  const hypervisor = createQemuHypervisor({ accelerator: 'kvm', log: options.log });
  const vmId = newVmId();
  const runDir = paths.vmDir(vmId);
  await using cleanup = new Cleanup();
  await mkdir(runDir, { recursive: true, mode: 0o700 });
  cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
  try {
    const shape = { memoryMb: 256, vcpus: 1 };
    const machine = await hypervisor.boot({ vmId, shape, image, runDir, pagesPath: join(runDir, 'pages') });
    cleanup.defer('trial machine', () => machine.destroy());
    const control = new ControlClient(await machine.openControl());
    // A QEMU that ends closes the channel first: its own words say more than that.
    await handshake(control, vmId, '', trialTimeoutMs).catch(async (error: Error) => {
      await machine.destroy();
      const { stderrTail } = await machine.exited;
      throw new Error(stderrTail.trim().split('\n').at(-1) || error.message);
    });
    return 'booted';
  } catch (error) {
    return `the guest kernel did not boot under KVM (${(error as Error).message})`;
  }
}

async function usable(device: string): Promise<boolean> {
  return access(device, constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  );
}
