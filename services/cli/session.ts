// Owns what every command of one CLI run shares: where words go, the configuration, the client.
// Invariant: a command gets all it needs from here, so tests can run one without a process of its own.
import type { Writable } from 'node:stream';
import type { Command } from 'commander';
import type { ConfigKey, ResolvedConfig } from '../../shared/config.ts';
import { type ApiClient, createApiClient } from './api-client.ts';
import { addConfigOptions, type ConfigFlags, loadConfig } from './load-config.ts';
import { createOutput, type Output } from './output.ts';

export interface CliStreams {
  env: NodeJS.ProcessEnv;
  stdout: Writable;
  stderr: Writable & { isTTY?: boolean; columns?: number };
}

export interface Session extends CliStreams {
  output(command: Command): Output;
  config(command: Command): Promise<ResolvedConfig>;
  /** Runs `work` with a client that is closed afterwards. */
  withClient<T>(command: Command, work: (client: ApiClient, output: Output) => Promise<T>): Promise<T>;
}

/** A command is added to the program by one of these, one per file in commands/. */
export type AddCommand = (program: Command, session: Session) => void;

export function createSession(streams: CliStreams): Session {
  const config = (command: Command) => loadConfig(command.optsWithGlobals<ConfigFlags>(), streams.env);
  const output = (command: Command) =>
    createOutput({ ...streams, json: command.optsWithGlobals().json === true });
  return {
    ...streams,
    config,
    output,
    async withClient(command, work) {
      const client = await createApiClient(await config(command), command.optsWithGlobals().url);
      try {
        return await work(client, output(command));
      } finally {
        await client.close();
      }
    },
  };
}

const clientKeys: readonly ConfigKey[] = ['dataDir', 'host', 'port'];

/** The options of a command that talks to a running Thaw. */
export function withClientOptions(command: Command, keys = clientKeys): Command {
  command.option(
    '--url <URL>',
    'where Thaw answers, instead of what the data directory or configuration say',
  );
  return addConfigOptions(withJson(command), keys);
}

export const withJson = (command: Command): Command =>
  command.option('--json', 'print results as JSON on standard output');
