// The conformance suite on real QEMU with the real guest image.
import { ensureImage } from '../../images/image.ts';
import { describeConformance } from '../../pool/hypervisor/conformance.ts';
import { createQemuHypervisor } from '../../pool/hypervisor/qemu/qemu-hypervisor.ts';
import { silentLog } from '../../shared/log.ts';

describeConformance(() => createQemuHypervisor({ accelerator: 'tcg', log: silentLog }), ensureImage);
