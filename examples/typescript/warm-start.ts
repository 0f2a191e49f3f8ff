// Warm start: install once, snapshot, and give every request a sandbox in which the import just works.
// Run: THAW_API_KEY=$(cat .thaw/api-key) node examples/typescript/warm-start.ts   Prints: ../expected/warm-start.txt
import { readFile } from 'node:fs/promises';
import { Sandbox } from '../../sdk/typescript/index.ts';

// Stands for a package index: a wheel that is built in the sandbox.
const wheel = await readFile(new URL('../wheel/build_wheel.py', import.meta.url), 'utf8');

async function installed(): Promise<{ sbx: Sandbox; elapsedMs: number }> {
  const sbx = await Sandbox.create({ timeoutMs: 900_000 });
  await sbx.files.write('build_wheel.py', wheel);
  await sbx.commands.run('python3 build_wheel.py', { timeoutMs: 300_000 });
  const startedAtMs = performance.now();
  await sbx.commands.run('pip3 install --no-index ./slowcast-1.0-py3-none-any.whl', { timeoutMs: 600_000 });
  return { sbx, elapsedMs: performance.now() - startedAtMs };
}

const { sbx, elapsedMs: installMs } = await installed();
const snapshot = await sbx.createSnapshot();
await sbx.kill();
console.log('installed once, then snapshotted');

let slowestMs = 0;
for (let request = 1; request <= 3; request++) {
  const startedAtMs = performance.now();
  const clone = await Sandbox.create({ snapshotId: snapshot.snapshotId });
  const result = await clone.commands.run("python3 -c 'import slowcast; print(slowcast.__version__)'");
  slowestMs = Math.max(slowestMs, performance.now() - startedAtMs);
  console.log(`request ${request}: slowcast ${result.stdout.trim()}`);
  await clone.kill();
}
console.log(`every request was faster than installing again: ${slowestMs < installMs}`);
console.error(`install ${Math.round(installMs)} ms; slowest request ${Math.round(slowestMs)} ms`);
