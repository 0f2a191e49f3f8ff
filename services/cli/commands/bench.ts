// Owns `thaw bench`: hands its arguments to the benchmark program and takes over its exit code.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { ExitCode } from '../failure.ts';
import { projectDir } from '../load-config.ts';
import type { AddCommand } from '../session.ts';

export const addBench: AddCommand = (program, session) => {
  program
    .command('bench [args...]')
    .description('run a benchmark: bench NAME [--json FILE] [options]')
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .action(async (args: string[]) => {
      const main = join(projectDir, 'loadtest/bench/main.ts');
      const child = spawn(process.execPath, [main, ...args], { stdio: 'inherit', env: session.env });
      const [exitCode] = (await once(child, 'exit')) as [number | null];
      if (exitCode !== 0) throw new ExitCode(exitCode ?? 1);
    });
};
