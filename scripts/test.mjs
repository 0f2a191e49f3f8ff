// Owns `npm test`: everything that can run on this machine, fast things first, and one closing line over all of it.
// Invariant: a stage that fails ends the run with its code; skips are counted and their reasons printed.
// Options: --fast leaves out real VMs; names of files run just those.
import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { ensureDependencies, projectDir } from './dependencies.mjs';
import { check, close, counted, leaveOut, tests } from './test-stages.mjs';

const options = process.argv.slice(2);
const named = options.filter((option) => !option.startsWith('--'));
const isFast = options.includes('--fast');

ensureDependencies();
if (named.length > 0) {
  await tests('named tests', named, 1);
} else {
  check('types', ['node_modules/typescript/bin/tsc', '--noEmit']);
  check('style', ['node_modules/@biomejs/biome/bin/biome', 'check', '.']);
  check('host packages', ['services/cli/main.ts', 'setup']);
  const unit = ['shared', 'pool', 'services', 'images', 'sdk', 'loadtest', 'test'];
  const files = filesOf(unit, '.test.ts').filter((path) => !/\.(vm|alone)\.test\.ts$/.test(path));
  await tests('unit tests', files, availableParallelism());
  // Limits of time: measured with the machine to themselves.
  await tests('tests that run alone', filesOf(unit, '.alone.test.ts'), 1);
  leaveOut(
    'test/compat/compatibility-vms.suite.ts: on demand, npm test -- FILE; over host processes its clients run above',
  );
  leaveOut(
    'test/vm/guest-agent.suite.ts: on demand, npm test -- FILE; its 50 streams once took 100 s in place of 12, not yet explained',
  );
  if (isFast) leaveOut('real VMs: left out by --fast');
  else {
    check('guest image', ['services/cli/main.ts', 'setup', '--image']);
    await tests('tests in real VMs', filesOf(['test'], '.vm.test.ts'), 1);
    if (process.env.THAW_CLOUD_HYPERVISOR) {
      console.log('… Cloud Hypervisor in a nested machine');
      await counted(['test/metal/main.ts']);
    } else leaveOut('Cloud Hypervisor in a nested machine: THAW_CLOUD_HYPERVISOR names no binary');
  }
}
close(0);

function filesOf(dirs, ending) {
  const found = dirs.flatMap((dir) =>
    readdirSync(`${projectDir}/${dir}`, { recursive: true }).map((name) => `${dir}/${name}`),
  );
  return found.filter((path) => path.endsWith(ending) && !path.includes('node_modules')).sort();
}
