// Owns the `thaw` process: its arguments, streams and exit code. Everything else is program.ts.
// Invariant: a reader that goes away (a pipe into head) ends the process quietly.
import { runCli } from './program.ts';

for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    throw error;
  });

process.exitCode = await runCli(process.argv.slice(2), process);
