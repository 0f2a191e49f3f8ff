// Owns having npm's dependencies installed, and running programs with the Node among them. Plain JavaScript without
// dependencies: this is what runs before anything is there, on the Node that the machine has.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const projectDir = fileURLToPath(new URL('..', import.meta.url));
export const node = join(projectDir, 'node_modules/.bin/node');

const stampPath = join(projectDir, 'node_modules/.thaw-lock-sha256');

/** Installs what package-lock.json names unless just that is installed. */
export function ensureDependencies() {
  if (process.platform !== 'linux' || process.arch !== 'x64') fail('Thaw runs on Linux on x86-64 machines');
  const lock = createHash('sha256')
    .update(readFileSync(join(projectDir, 'package-lock.json')))
    .digest('hex');
  if (existsSync(node) && existsSync(stampPath) && readFileSync(stampPath, 'utf8') === lock) return;
  const startedAtMs = Date.now();
  console.error('… npm dependencies: everything Thaw runs on, its own Node 24 included');
  const { status } = spawnSync('npm', ['ci', '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: projectDir,
    stdio: ['ignore', 2, 2],
  });
  if (status !== 0) fail('npm ci failed; see above');
  writeFileSync(stampPath, lock);
  console.error(`✓ npm dependencies  ${((Date.now() - startedAtMs) / 1000).toFixed(1)} s`);
}

/** Runs a program of this project to its end. @returns its exit code. */
export function run(args, options = {}) {
  const { status, signal } = spawnSync(node, args, { cwd: projectDir, stdio: 'inherit', ...options });
  return status ?? (signal === 'SIGINT' ? 130 : 1);
}

export function fail(line) {
  console.error(`thaw: ${line}`);
  process.exit(1);
}
