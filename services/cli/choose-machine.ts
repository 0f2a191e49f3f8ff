// Owns what a Thaw runs its VMs on, as configuration asks: guest image, driver, and the words for people about both.
// Refuses to own how a hypervisor is tried (pool/hypervisor/choose.ts).
// Invariant: what is slower or less safe than it could be is counted and noted; strict configuration refuses it.

import { join } from 'node:path';
import { defaultCacheDir, ensureImage } from '../../images/image.ts';
import type { Paths } from '../../pool/host/paths.ts';
import { type Choice, chooseHypervisor, findCloudHypervisor } from '../../pool/hypervisor/choose.ts';
import { hardeningOf, lacking } from '../../pool/hypervisor/hardening.ts';
import type { GuestImage, Hypervisor } from '../../pool/hypervisor/hypervisor.ts';
import { createProcessHypervisor, hostAsImage } from '../../pool/hypervisor/process/process-hypervisor.ts';
import { createQemuHypervisor } from '../../pool/hypervisor/qemu/qemu-hypervisor.ts';
import type { Config } from '../../shared/config.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';
import { type Progress, withStep } from './progress.ts';
import { openUserNetworks } from './user-networks.ts';

const agentProgram = join(import.meta.dirname, '../guest-agent/main.ts');

export interface ChosenMachine {
  hypervisor: Hypervisor;
  image: GuestImage;
  about: string;
  notes: string[];
  /** Ends what the driver keeps ready, once all VMs are gone. */
  close(): Promise<unknown>;
}

/** @throws ThawError `missing-package` | `image-failed` | `hypervisor-failed` | `not-hardened`. */
export async function chooseMachine(
  config: Config,
  paths: Paths,
  log: Log,
  progress: Progress,
): Promise<ChosenMachine> {
  if (config.hypervisor === 'process') {
    await requireHardening(config, 'process');
    return hostProcesses();
  }
  const { hypervisor: asked } = config;
  const cloudHypervisor = await findCloudHypervisor(config.cloudHypervisor);
  const image = await withStep(progress, 'guest image', (step) =>
    ensureImage({
      cacheDir: config.cacheDir ?? defaultCacheDir(),
      onProgress: (text) => step.update(text),
    }),
  );
  const {
    hypervisor: chosen,
    choice,
    close,
  } = await withStep(
    progress,
    'hypervisor',
    (step) =>
      chooseHypervisor({
        ...{ image, paths, log, asked, cloudHypervisor },
        onProgress: (text) => step.update(text),
      }),
    (found) => `${nameOf(found.choice)}, ${found.choice.reason}`,
  );
  await requireHardening(config, chosen.name, cloudHypervisor).catch(async (error) => {
    await close();
    throw error;
  });
  const { accelerator } = choice;
  const { slots, notes } =
    choice.hypervisor === 'qemu'
      ? await openUserNetworks(config, paths, log)
      : { slots: undefined, notes: [] };
  const hypervisor = slots ? createQemuHypervisor({ accelerator, log, slots }) : chosen;
  const emulated = accelerator === 'tcg';
  if (emulated) metrics.fallbacks.inc({ kind: 'software-emulation' });
  const about = `${choice.hypervisor} (${emulated ? 'software emulation' : 'KVM'})`;
  if (emulated) notes.push(`guests run slower: ${choice.reason}`);
  const closeAll = () => Promise.all([close(), slots?.close()]);
  return { hypervisor, image, about, notes, close: closeAll };
}

export const nameOf = ({ hypervisor }: Choice): string =>
  hypervisor === 'qemu' ? 'QEMU' : 'Cloud Hypervisor';

/** @throws ThawError `not-hardened` in strict configuration, naming each measure that is not in force. */
async function requireHardening(
  { strict, dataDir }: Config,
  hypervisor: Hypervisor['name'],
  binary?: string,
): Promise<void> {
  if (!strict) return;
  const missing = lacking(await hardeningOf({ hypervisor, binary, dataDir }));
  if (missing !== '')
    throw new ThawError('not-hardened', `THAW_STRICT: not in force for ${hypervisor}: ${missing}`);
}

function hostProcesses(): ChosenMachine {
  metrics.fallbacks.inc({ kind: 'no-isolation' });
  return {
    hypervisor: createProcessHypervisor({ agentProgram }),
    image: hostAsImage,
    about: 'process (no isolation)',
    notes: ['functions and sandboxes run as host processes without isolation: for tests only'],
    close: async () => {},
  };
}
