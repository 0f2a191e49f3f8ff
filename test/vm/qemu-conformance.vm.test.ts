// The conformance suite on real QEMU with the real guest image.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';
import { ensureImage } from '../../images/image.ts';
import { describeConformance } from '../../pool/hypervisor/conformance.ts';
import { createQemuHypervisor } from '../../pool/hypervisor/qemu/qemu-hypervisor.ts';
import { silentLog } from '../../shared/log.ts';

const imagesDir = await mkdtemp(join(tmpdir(), 'thaw-image-'));
after(() => rm(imagesDir, { recursive: true, force: true }));

describeConformance(
  () => createQemuHypervisor({ accelerator: 'tcg', log: silentLog }),
  () => ensureImage({ imagesDir }),
);
