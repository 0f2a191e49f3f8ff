// Owns `npm run bench`: hands the benchmark program to the Node that comes as a dependency, whichever one npm runs on.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const projectDir = fileURLToPath(new URL('..', import.meta.url));
const node = join(projectDir, 'node_modules/.bin/node');
if (!existsSync(node)) {
  console.error('node_modules is not there: run npm install first');
  process.exit(1);
}
const main = join(projectDir, 'loadtest/bench/main.ts');
// A Ctrl-C goes to the whole group: the program below cleans up, and its end is the end of this one.
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => {});
const { status, signal } = spawnSync(node, [main, ...process.argv.slice(2)], { stdio: 'inherit' });
process.exit(status ?? (signal === 'SIGINT' ? 130 : 1));
