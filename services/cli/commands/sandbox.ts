// Owns `thaw sandbox`: create, exec, ls, kill. Refuses to own the wire of exec (sandbox-exec.ts) and saving (sandbox-capture.ts).
// Invariant: the exit code of `exec` is the command's own.
import type { Command } from 'commander';
import { ExitCode, UsageError } from '../failure.ts';
import { table } from '../output.ts';
import { execInSandbox } from '../sandbox-exec.ts';
import { type AddCommand, type Session, withClientOptions } from '../session.ts';
import { addCaptures } from './sandbox-capture.ts';

interface SandboxRow {
  sandboxID: string;
  templateID: string;
  alias?: string;
  state: string;
  startedAt: string;
  endAt: string;
  cpuCount: number;
  memoryMB: number;
}

export const addSandbox: AddCommand = (program, session) => {
  const sandbox = program.command('sandbox').description('VMs for a user to drive');
  addCreate(sandbox, session);
  addExec(sandbox, session);
  addList(sandbox, session);
  addKill(sandbox, session);
  addCaptures(sandbox, session);
};

const pairs = (value: string, all: Record<string, string>): Record<string, string> => {
  const at = value.indexOf('=');
  if (at < 1) throw new UsageError(`expected KEY=VALUE, got ${JSON.stringify(value)}`);
  return { ...all, [value.slice(0, at)]: value.slice(at + 1) };
};

function wholeSeconds(text: string): number {
  if (!/^[0-9]{1,9}$/.test(text))
    throw new UsageError(`--timeout: expected seconds, got ${JSON.stringify(text)}`);
  return Number(text);
}

function addCreate(sandbox: Command, session: Session): void {
  withClientOptions(sandbox.command('create [template]'))
    .description('start a sandbox from a template, `base` when none is named')
    .option('--timeout <SECONDS>', 'how long it may live', wholeSeconds, 300)
    .option('-e, --env <KEY=VALUE>', 'environment of its commands, may be repeated', pairs, {})
    .action(async (template: string | undefined, options, command) =>
      session.withClient(command, async (client, output) => {
        const startedAtMs = performance.now();
        const created = await client.json<{ sandboxID: string }>('/v2/sandboxes', {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({
            templateID: template ?? 'base',
            timeout: options.timeout,
            envVars: options.env,
          }),
          headersTimeoutMs: 120_000,
        });
        const elapsedMs = Math.round(performance.now() - startedAtMs);
        output.value({ ...created, elapsedMs });
        output.line(created.sandboxID);
        output.error(`created in ${elapsedMs} ms; try: thaw sandbox exec ${created.sandboxID} -- uname -a`);
      }),
    );
}

function addExec(sandbox: Command, session: Session): void {
  withClientOptions(sandbox.command('exec <id> <command...>'))
    .description('run a command: exec ID -- CMD ARGS')
    .passThroughOptions()
    .option('--cwd <DIR>', 'where it runs')
    .option('--user <NAME>', 'who it runs as')
    .option('-e, --env <KEY=VALUE>', 'environment, may be repeated', pairs, {})
    .action(async (sandboxId: string, argv: string[], options, command) =>
      session.withClient(command, async (client, output) => {
        const { cwd, user, env } = options;
        const words = withoutSeparator(argv);
        const exitCode = await execInSandbox(client, { sandboxId, command: words, cwd, user, env }, session);
        if (exitCode !== 0) throw new ExitCode(exitCode);
        void output;
      }),
    );
}

/** Everything after the id is passed through, the separator too. */
function withoutSeparator(argv: string[]): string[] {
  const words = argv[0] === '--' ? argv.slice(1) : argv;
  if (words.length === 0) throw new UsageError('exec ID -- CMD ARGS: the command is missing');
  return words;
}

function addList(sandbox: Command, session: Session): void {
  withClientOptions(sandbox.command('ls'))
    .description('list the sandboxes that run')
    .action(async (_options, command) =>
      session.withClient(command, async (client, output) => {
        const sandboxes = await client.json<SandboxRow[]>('/v2/sandboxes');
        output.value({ sandboxes });
        output.line(
          table(
            ['ID', 'TEMPLATE', 'STATE', 'CPUS', 'MEMORY', 'STARTED', 'ENDS'],
            sandboxes.map((row) => [
              row.sandboxID,
              row.alias ?? row.templateID,
              row.state,
              row.cpuCount,
              `${row.memoryMB} MB`,
              row.startedAt,
              row.endAt,
            ]),
          ),
        );
      }),
    );
}

function addKill(sandbox: Command, session: Session): void {
  withClientOptions(sandbox.command('kill <id>'))
    .description('end a sandbox')
    .action(async (sandboxId: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        await client.json(`/sandboxes/${encodeURIComponent(sandboxId)}`, { method: 'DELETE' });
        output.value({ killed: sandboxId });
        output.line(`${sandboxId} is gone`);
      }),
    );
}
