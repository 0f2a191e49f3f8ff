// Owns `npm test`: everything that can run on this machine, fast things first, and one closing line over all of it.
// Invariant: a stage that fails ends the run with its code; skips are counted and their reasons printed.
// Options: --fast leaves out real VMs; names of files run just those.
import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { ensureDependencies, node, projectDir, run } from './dependencies.mjs';

const total = { pass: 0, fail: 0, skipped: 0 };
const skipReasons = [];
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
  skipReasons.push('clients of several versions: npm run test:compat, which installs each of them');
  skipReasons.push(
    'test/**/*.suite.ts: on demand, npm test -- FILE; their limits of time do not yet hold on a busy host',
  );
  if (isFast) skipReasons.push('real VMs: left out by --fast');
  else {
    check('guest image', ['services/cli/main.ts', 'setup', '--image']);
    await tests('tests in real VMs', filesOf(['test'], '.vm.test.ts'), 1);
  }
}
close(0);

function filesOf(dirs, ending) {
  const found = dirs.flatMap((dir) =>
    readdirSync(`${projectDir}/${dir}`, { recursive: true }).map((name) => `${dir}/${name}`),
  );
  return found.filter((path) => path.endsWith(ending) && !path.includes('node_modules')).sort();
}

function check(title, args) {
  const startedAtMs = Date.now();
  console.log(`… ${title}`);
  const exitCode = run(args);
  if (exitCode !== 0) {
    total.fail++;
    console.log(`✗ ${title}`);
    close(exitCode);
  }
  console.log(`✓ ${title}  ${((Date.now() - startedAtMs) / 1000).toFixed(1)} s`);
}

async function tests(title, files, concurrency) {
  console.log(`… ${title}: ${files.length} files`);
  const args = ['--test', '--test-reporter=spec', `--test-concurrency=${concurrency}`, ...files];
  const child = spawn(node, args, { cwd: projectDir, stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    process.stdout.write(chunk);
    text += chunk;
  });
  const exitCode = await new Promise((resolve) => child.on('close', resolve));
  for (const key of Object.keys(total))
    total[key] += Number(text.match(new RegExp(`^ℹ ${key} (\\d+)$`, 'm'))?.[1] ?? 0);
  for (const [, name, reason] of text.matchAll(/^\s*﹣ (.*?) \([\d.]+ms\) # (.*)$/gm))
    skipReasons.push(`${name}: ${reason}`);
  if (exitCode !== 0) close(exitCode ?? 1);
}

function close(exitCode) {
  if (skipReasons.length > 0)
    console.log(`\nskipped:\n${skipReasons.map((reason) => `  ${reason}`).join('\n')}`);
  if (exitCode !== 0 && total.fail === 0) total.fail = 1;
  console.log(`\n${total.pass} passed, ${total.fail} failed, ${total.skipped} skipped`);
  process.exit(exitCode);
}
