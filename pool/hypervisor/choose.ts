// Owns the choice of hypervisor: KVM is believed only when the real guest kernel booted under it with the very VMM that
// would be used, because a /dev/kvm that exists may not run it. The answer is remembered with what it depends on.
// Invariant: `process` is never chosen here; a hypervisor that is asked for by name is used or refused, never replaced;
// the reason for the choice is kept for `thaw doctor`.
import { access, constants, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { Value } from 'typebox/value';
import { Cleanup } from '../../shared/cleanup.ts';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import { newVmId } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import { ControlClient } from '../guest/control-client.ts';
import { handshake } from '../guest/handshake.ts';
import type { Paths } from '../host/paths.ts';
import {
  type CloudHypervisor,
  createCloudHypervisor,
  versionOf,
} from './cloud-hypervisor/cloud-hypervisor.ts';
import type { GuestImage, Hypervisor } from './hypervisor.ts';
import { createQemuHypervisor } from './qemu/qemu-hypervisor.ts';

const choiceSchema = Type.Object({
  hypervisor: Type.Union([Type.Literal('cloud-hypervisor'), Type.Literal('qemu')]),
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
  /** `auto` takes Cloud Hypervisor where it works, else QEMU; a name is an order. */
  asked?: 'auto' | 'cloud-hypervisor' | 'qemu';
  /** Cloud Hypervisor's binary, where there is one. */
  cloudHypervisor?: string | undefined;
  onProgress?: (step: string) => void;
  /** Replaced in tests. */
  kvmDevice?: string;
}

export interface Chosen {
  hypervisor: Hypervisor;
  choice: Choice;
  /** Ends what the driver keeps ready; its VMs are their holders'. */
  close(): Promise<void>;
}

interface Candidates {
  /** Absent where it cannot be tried at all; `fault` says why. */
  cloud: CloudHypervisor | undefined;
  fault: string;
  /** Of the KVM device. */
  present: boolean;
  device: string;
  /** What any answer depends on. */
  facts: readonly unknown[];
}

/** How long the guest may take to answer under KVM; a working one needs one or two seconds. */
const trialTimeoutMs = 15_000;
/** Where the CPU can virtualise and a binary was put for it; a machine that is itself emulated needs half of it. */
const patientTrialTimeoutMs = 150_000;

/**
 * @returns the driver to use and why; decides by trial at most once per kernel, hypervisor and image.
 * @throws ThawError `hypervisor-failed` when the one that was asked for by name does not work here.
 */
export async function chooseHypervisor(options: ChooseOptions): Promise<Chosen> {
  const candidates = await candidatesOf(options);
  const { cloud } = candidates;
  const close = async () => cloud?.close();
  try {
    const choice = (await stillRight(options, candidates)) ?? (await decide(options, candidates));
    if (choice.hypervisor === 'cloud-hypervisor') return { hypervisor: cloud!, choice, close };
    await close();
    const { accelerator } = choice;
    const hypervisor = createQemuHypervisor({ accelerator, log: options.log });
    return { hypervisor, choice, close: async () => {} };
  } catch (error) {
    await close();
    throw error;
  }
}

/** What was decided before, while nothing that it depends on has changed. */
async function stillRight(options: ChooseOptions, candidates: Candidates): Promise<Choice | undefined> {
  const { asked = 'auto', paths } = options;
  const remembered = await rememberedChoice(paths.hypervisorChoice);
  if (!remembered || (asked !== 'auto' && asked !== remembered.hypervisor)) return undefined;
  return remembered.inputs === (await inputsOf(remembered.hypervisor, options, candidates))
    ? remembered
    : undefined;
}

async function inputsOf(
  hypervisor: Choice['hypervisor'],
  { image, log, asked = 'auto' }: ChooseOptions,
  { facts }: Candidates,
): Promise<string> {
  if (hypervisor === 'cloud-hypervisor') return JSON.stringify(facts);
  const { hypervisorVersion } = await createQemuHypervisor({ accelerator: 'tcg', log }).compatibility(image);
  return JSON.stringify([...facts, asked, hypervisorVersion]);
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

async function candidatesOf(options: ChooseOptions): Promise<Candidates> {
  const {
    image,
    paths,
    log,
    asked = 'auto',
    cloudHypervisor: binary,
    kvmDevice: device = '/dev/kvm',
  } = options;
  const present = await usable(device);
  const found = asked === 'qemu' ? { fault: '', version: '' } : await whyNotCloud(binary);
  const fault = found.fault || (present ? '' : `${device} is absent or not accessible`);
  const cloud =
    asked === 'qemu' || fault !== '' ? undefined : createCloudHypervisor({ program: [binary!], paths, log });
  return { cloud, fault, present, device, facts: [release(), found, image.digest, present] };
}

/** @returns why a binary is not even tried, and its version where it could be asked. */
async function whyNotCloud(binary: string | undefined): Promise<{ fault: string; version: string }> {
  if (binary === undefined) return { fault: 'there is no cloud-hypervisor binary', version: '' };
  try {
    const version = await versionOf([binary]);
    const isRoot = process.getuid?.() === 0;
    return { fault: isRoot ? '' : 'network namespaces need root', version };
  } catch (error) {
    return { fault: (error as Error).message, version: '' };
  }
}

async function decide(options: ChooseOptions, candidates: Candidates): Promise<Choice> {
  const { asked = 'auto', cloudHypervisor: binary, onProgress } = options;
  const { cloud, present, device } = candidates;
  onProgress?.('trying KVM with the real guest kernel');
  const noCloud = cloud
    ? await trialBoot(
        cloud,
        options,
        (await hasHardwareVirtualisation()) ? patientTrialTimeoutMs : trialTimeoutMs,
      )
    : candidates.fault;
  if (asked !== 'qemu' && noCloud === '')
    return remember(options, {
      hypervisor: 'cloud-hypervisor',
      accelerator: 'kvm',
      reason: 'the guest kernel booted under KVM',
      inputs: await inputsOf('cloud-hypervisor', options, candidates),
    });
  if (asked === 'cloud-hypervisor')
    throw new ThawError('hypervisor-failed', `THAW_HYPERVISOR=cloud-hypervisor: ${noCloud}`);
  const inputs = await inputsOf('qemu', options, candidates);
  const kvm = createQemuHypervisor({ accelerator: 'kvm', log: options.log });
  const noKvm = present
    ? await trialBoot(kvm, options, trialTimeoutMs)
    : `${device} is absent or not accessible`;
  // Whoever has no binary did not ask for it.
  const passedOver = binary === undefined || asked === 'qemu' ? '' : `; not Cloud Hypervisor: ${noCloud}`;
  const found = noKvm === '' ? 'the guest kernel booted under KVM' : `software emulation: ${noKvm}`;
  const accelerator = noKvm === '' ? 'kvm' : 'tcg';
  return remember(options, { hypervisor: 'qemu', accelerator, reason: `${found}${passedOver}`, inputs });
}

async function remember({ paths }: ChooseOptions, found: Omit<Choice, 'decidedAt'>): Promise<Choice> {
  const choice = { ...found, decidedAt: new Date().toISOString() };
  await mkdir(paths.dataDir, { recursive: true });
  await writeFile(paths.hypervisorChoice, JSON.stringify(choice, null, 2));
  return choice;
}

/** @returns '' when the guest booted and answered, else what went wrong in one line. */
async function trialBoot(
  hypervisor: Hypervisor,
  { image, paths }: ChooseOptions,
  timeoutMs: number,
): Promise<string> {
  const vmId = newVmId();
  const runDir = paths.vmDir(vmId);
  await using cleanup = new Cleanup();
  await mkdir(runDir, { recursive: true, mode: 0o700 });
  cleanup.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
  try {
    const shape = { memoryMb: 256, vcpus: 1 };
    const machine = await hypervisor.boot({ vmId, shape, image, runDir, pagesPath: join(runDir, 'pages') });
    cleanup.defer('trial machine', () => machine.destroy());
    const greeted = async () =>
      handshake(new ControlClient(await machine.openControl()), vmId, '', timeoutMs);
    // A VMM that ends closes the channel first: its own words say more than that.
    await withDeadline('the boot', timeoutMs, greeted()).catch(async (error: Error) => {
      await machine.destroy();
      const { stderrTail } = await machine.exited;
      throw new Error(stderrTail.trim().split('\n').at(-1) || error.message);
    });
    return '';
  } catch (error) {
    return `the guest kernel did not boot under KVM (${(error as Error).message})`;
  }
}

/** What the CPU says of itself; a /dev/kvm may be there without. */
export async function hasHardwareVirtualisation(): Promise<boolean> {
  return /^flags\s*:.* (vmx|svm)\b/m.test(await readFile('/proc/cpuinfo', 'utf8'));
}

/** The binary that configuration names, else the one on the path. */
export async function findCloudHypervisor(named: string | undefined): Promise<string | undefined> {
  if (named !== undefined) return named;
  for (const dir of (process.env.PATH ?? '').split(':').filter((each) => each.startsWith('/'))) {
    const path = join(dir, 'cloud-hypervisor');
    if (await allows(path, constants.X_OK)) return path;
  }
  return undefined;
}

const usable = (device: string): Promise<boolean> => allows(device, constants.R_OK | constants.W_OK);

async function allows(path: string, mode: number): Promise<boolean> {
  return access(path, mode).then(
    () => true,
    () => false,
  );
}
