// Owns `npm run test:metal`: what needs a real KVM and a real Cloud Hypervisor, in a nested machine that has one.
// Invariant: without a binary it says so and is no failure; the closing lines are those of `npm test`.
import { ensureDependencies } from './dependencies.mjs';
import { check, close, counted, leaveOut } from './test-stages.mjs';

ensureDependencies();
await metal();
close(0);

async function metal() {
  if (!process.env.THAW_CLOUD_HYPERVISOR)
    return leaveOut('Cloud Hypervisor in a nested machine: THAW_CLOUD_HYPERVISOR names no binary');
  check('host packages', ['services/cli/main.ts', 'setup', '--image']);
  console.log('… Cloud Hypervisor in a nested machine');
  await counted(['test/metal/main.ts', ...process.argv.slice(2)]);
}
