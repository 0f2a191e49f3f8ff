// Owns running the stages of a test run and its closing lines: counts over all stages, reasons of what was skipped.
// Refuses to own which stages there are. Invariant: a stage that fails ends the run with its code, and the closing lines
// are said in every case.
import { spawn } from 'node:child_process';
import { node, projectDir, run } from './dependencies.mjs';

const total = { pass: 0, fail: 0, skipped: 0 };
const skipReasons = [];

/** Something that does not run here, and why. */
export function leaveOut(reason) {
  skipReasons.push(reason);
}

/** A program that says by its exit code whether all is well. */
export function check(title, args) {
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

/** Test files of this machine. */
export async function tests(title, files, concurrency) {
  console.log(`… ${title}: ${files.length} files`);
  await counted(['--test', '--test-reporter=spec', `--test-concurrency=${concurrency}`, ...files]);
}

/** A program that prints the reports of test runs, one or several. */
export async function counted(args) {
  const child = spawn(node, args, { cwd: projectDir, stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    process.stdout.write(chunk);
    text += chunk;
  });
  const exitCode = await new Promise((resolve) => child.on('close', resolve));
  for (const key of Object.keys(total))
    for (const [, count] of text.matchAll(new RegExp(`^ℹ ${key} (\\d+)$`, 'gm'))) total[key] += Number(count);
  for (const [, name, reason] of text.matchAll(/^\s*﹣ (.*?) \([\d.]+ms\) # (.*)$/gm))
    skipReasons.push(`${name}: ${reason}`);
  if (exitCode !== 0) close(exitCode ?? 1);
}

export function close(exitCode) {
  if (skipReasons.length > 0)
    console.log(`\nskipped:\n${skipReasons.map((reason) => `  ${reason}`).join('\n')}`);
  if (exitCode !== 0 && total.fail === 0) total.fail = 1;
  console.log(`\n${total.pass} passed, ${total.fail} failed, ${total.skipped} skipped`);
  process.exit(exitCode);
}
