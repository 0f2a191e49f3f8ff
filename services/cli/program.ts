// Owns the command line's tree and running it once: arguments in, exit code out.
// Refuses to own any command (commands/). Invariant: nothing here ends the process; the exit code is the result.
import { Command } from 'commander';
import { addBench } from './commands/bench.ts';
import { addConfig } from './commands/config.ts';
import { addDeploy } from './commands/deploy.ts';
import { addDoctor } from './commands/doctor.ts';
import { addFunctions } from './commands/functions.ts';
import { addInvoke } from './commands/invoke.ts';
import { addLogs } from './commands/logs.ts';
import { addNotOffered } from './commands/not-offered.ts';
import { addSandbox } from './commands/sandbox.ts';
import { addSetup } from './commands/setup.ts';
import { addSnapshot } from './commands/snapshot.ts';
import { addTemplate } from './commands/template.ts';
import { addUp } from './commands/up.ts';
import { exitCodes, report } from './failure.ts';
import { createOutput } from './output.ts';
import { type CliStreams, createSession, withJson } from './session.ts';
import { thawVersion } from './version.ts';

const commands = [
  addUp,
  addSetup,
  addDoctor,
  addDeploy,
  addInvoke,
  addFunctions,
  addLogs,
  addSandbox,
  addSnapshot,
  addTemplate,
  addConfig,
  addBench,
  addNotOffered,
];

/** Runs one command line; `argv` without the program's own name. */
export async function runCli(argv: string[], streams: CliStreams): Promise<number> {
  const program = new Command('thaw')
    .description('Functions and sandboxes in microVMs that are restored from snapshots')
    .version(thawVersion)
    .showHelpAfterError('(--help shows what can be given)')
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void streams.stdout.write(text),
      writeErr: (text) => void streams.stderr.write(text),
    });
  withJson(program);
  const session = createSession(streams);
  for (const add of commands) add(program, session);
  try {
    await program.parseAsync(argv, { from: 'user' });
    return exitCodes.ok;
  } catch (error) {
    const json = argv.slice(0, argv.includes('--') ? argv.indexOf('--') : undefined).includes('--json');
    return report(error, createOutput({ ...streams, json }));
  }
}
