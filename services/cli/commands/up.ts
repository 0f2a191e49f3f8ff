// Owns `thaw up`: a whole Thaw in this process until it is told to stop.
// Invariant: the first signal drains; a second one ends at once, and the next start cleans up.
import { join } from 'node:path';
import type { Command } from 'commander';
import type { ResolvedConfig } from '../../../shared/config.ts';
import { createApiClient } from '../api-client.ts';
import { exitCodes } from '../failure.ts';
import { addConfigOptions } from '../load-config.ts';
import { type Platform, startPlatform } from '../platform.ts';
import { createProgress, type Progress } from '../progress.ts';
import { type AddCommand, type Session, withJson } from '../session.ts';
import { deployUnlessServed } from './deploy.ts';

export const addUp: AddCommand = (program, session) => {
  addConfigOptions(withJson(program.command('up')))
    .description('start everything on this machine and serve until SIGTERM or SIGINT')
    .option('--deploy <DIR>', 'a function to deploy once Thaw is up, unless it serves already')
    .action((options: { deploy?: string }, command: Command) => up(session, command, options.deploy));
};

async function up(session: Session, command: Command, deployDir: string | undefined): Promise<void> {
  const progress = createProgress(session.stderr);
  const resolved = await session.config(command);
  const stopped = untilSignal();
  const platform = await started(resolved, progress, stopped);
  try {
    if (deployDir !== undefined) await deployFirst(session, command, platform, progress, deployDir);
    announce(session, command, platform, deployDir !== undefined);
    const signal = await stopped;
    progress.note(`${signal}: finishing what is in work`);
  } finally {
    for (const failure of await platform.close()) progress.note(`! could not be ended: ${failure}`);
  }
}

/** A signal during the start gives it up, and this process ends. */
async function started(
  resolved: ResolvedConfig,
  progress: Progress,
  stopped: Promise<NodeJS.Signals>,
): Promise<Platform> {
  const giveUp = new AbortController();
  void stopped.then((signal) => giveUp.abort(signal));
  try {
    return await startPlatform(resolved, progress, giveUp.signal);
  } catch (error) {
    if (!giveUp.signal.aborted) throw error;
    progress.note(`${giveUp.signal.reason}: the start was given up`);
    // What the start still waits for would keep this process alive.
    process.exit(exitCodes.failed);
  }
}

async function deployFirst(
  session: Session,
  command: Command,
  platform: Platform,
  progress: Progress,
  dir: string,
): Promise<void> {
  const client = await createApiClient(await session.config(command), platform.url);
  try {
    await deployUnlessServed(client, dir, progress);
  } finally {
    await client.close();
  }
}

function announce(session: Session, command: Command, platform: Platform, deployed: boolean): void {
  const output = session.output(command);
  const { url, tlsUrl, adminUrl, apiKeyPath, hypervisor } = platform;
  output.value({ url, ...(tlsUrl ? { tlsUrl } : {}), adminUrl, apiKeyPath, hypervisor });
  output.line(`
Thaw is up on ${url}${tlsUrl ? ` and ${tlsUrl}` : ''}  (metrics and health: ${adminUrl})
  VMs      ${hypervisor}
  API key  ${apiKeyPath}
  logs     ${join(apiKeyPath, '../thaw.log')}
${deployed ? `\n  curl ${url}/fn/hello/\n` : `\n  bin/thaw deploy examples/hello\n`}`);
}

/** Resolves with the first signal; a second one ends the process. */
function untilSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT'] as const)
      process.on(signal, () => {
        resolve(signal);
        process.once(signal, () => process.exit(1));
      });
  });
}
