// The conformance suite on real Cloud Hypervisor with the real guest image; `npm run test:metal` runs it where the host
// has no KVM.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { ensureImage } from '../../images/image.ts';
import { pathsOf } from '../../pool/host/paths.ts';
import { createCloudHypervisor } from '../../pool/hypervisor/cloud-hypervisor/cloud-hypervisor.ts';
import { describeConformance } from '../../pool/hypervisor/conformance.ts';
import { silentLog } from '../../shared/log.ts';
import { binaryPath, whyNotHere } from './cloud-hypervisor-here.ts';

const reason = await whyNotHere();
if (reason === undefined) {
  const dataDir = await mkdtemp(join(tmpdir(), 'thaw-ch-'));
  const paths = pathsOf(dataDir);
  const hypervisor = createCloudHypervisor({ program: [binaryPath!], paths, log: silentLog });
  describeConformance(() => hypervisor, ensureImage);
  after(async () => {
    await hypervisor.close();
    await rm(dataDir, { recursive: true, force: true });
  });
} else {
  describe('hypervisor conformance: cloud-hypervisor', () => {
    it('runs on this machine', { skip: reason }, () => {});
  });
}
