// Owns `npm run bench`: the benchmark program on the Node that comes as a dependency.
import { ensureDependencies, run } from './dependencies.mjs';

ensureDependencies();
// A Ctrl-C goes to the whole group: the program cleans up, and its end is the end of this one.
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => {});
process.exit(run(['loadtest/bench/main.ts', ...process.argv.slice(2)]));
