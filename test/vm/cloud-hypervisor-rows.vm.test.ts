// Rows of the failure matrix on real Cloud Hypervisor with the real guest; `npm run test:metal` runs it where the host
// has no KVM.
import { describe, it } from 'node:test';
import { whyNotHere } from './cloud-hypervisor-here.ts';
import { describeRows } from './cloud-hypervisor-rows.ts';
import { openCloudHypervisorWorld } from './cloud-hypervisor-world.ts';

const reason = await whyNotHere();
if (reason === undefined) describeRows(openCloudHypervisorWorld, 'runs');
else
  describe('rows of the failure matrix on Cloud Hypervisor', () => {
    it('runs on this machine', { skip: reason }, () => {});
  });
