// Owns `npm start`: dependencies, host packages, then `thaw up` with the example deployed.
// Invariant: every step shows itself and its time; what is there already costs next to nothing.
import { spawn } from 'node:child_process';
import { ensureDependencies, node, projectDir, run } from './dependencies.mjs';

ensureDependencies();
const cli = 'services/cli/main.ts';
const setup = run([cli, 'setup']);
if (setup !== 0) process.exit(setup);
const thaw = spawn(node, [cli, 'up', '--deploy', 'examples/hello', ...process.argv.slice(2)], {
  cwd: projectDir,
  stdio: 'inherit',
});
// A terminal sends Ctrl-C to the whole group; a supervisor sends SIGTERM to this process alone.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => thaw.kill('SIGTERM'));
thaw.on('exit', (code, signal) => process.exit(code ?? (signal === 'SIGINT' ? 130 : 1)));
