// Restores a VM, captures it, and dies by SIGKILL as soon as the named stage has ended: what a crash of Thaw leaves is
// looked at by who started this. Arguments: data directory, snapshot, stage.
import { ensureImage } from '../../images/image.ts';
import { GuestShell } from '../../pool/guest/guest-shell.ts';
import { pathsOf } from '../../pool/host/paths.ts';
import { createQemuHypervisor } from '../../pool/hypervisor/qemu/qemu-hypervisor.ts';
import { LocalVmFactory } from '../../pool/vm-factory.ts';
import { silentLog } from '../../shared/log.ts';

const [dataDir, snapshotId, lastStage] = process.argv.slice(2);
const factory = new LocalVmFactory({
  hypervisor: createQemuHypervisor({ accelerator: 'tcg', log: silentLog }),
  image: await ensureImage(),
  paths: pathsOf(dataDir!),
  log: silentLog,
});
const vm = await factory.restore(snapshotId!, AbortSignal.timeout(60_000));
const shell = await GuestShell.open(vm.agent, vm.secret);
await shell.run('echo marked > /dev/shm/mark');
const onStage = (stage: string) => {
  if (stage === lastStage) process.kill(process.pid, 'SIGKILL');
};
await vm.capture({ resume: true, onStage });
