// Owns `thaw sandbox pause|resume|snapshot|fork`: saving a sandbox and going on from it.
import type { Command } from 'commander';
import type { ApiClient } from '../api-client.ts';
import { UsageError } from '../failure.ts';
import { type Session, withClientOptions } from '../session.ts';

/** A capture under emulation, on a loaded host. */
const headersTimeoutMs = 180_000;

const send = <T>(client: ApiClient, path: string, body: object): Promise<T> =>
  client.json<T>(path, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
    headersTimeoutMs,
  });

function wholeNumber(text: string): number {
  if (!/^[1-9][0-9]{0,8}$/.test(text))
    throw new UsageError(`expected a whole number, got ${JSON.stringify(text)}`);
  return Number(text);
}

export function addCaptures(sandbox: Command, session: Session): void {
  withClientOptions(sandbox.command('pause <id>'))
    .description('save its memory and free its VM; resume brings it back')
    .action(async (id: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        await send(client, `/sandboxes/${encodeURIComponent(id)}/pause`, {});
        output.value({ paused: id });
        output.line(`${id} is paused`);
      }),
    );
  withClientOptions(sandbox.command('resume <id>'))
    .description('let a paused sandbox go on, under the same id')
    .option('--timeout <SECONDS>', 'how long it may live', wholeNumber, 300)
    .action(async (id: string, options: { timeout: number }, command) =>
      session.withClient(command, async (client, output) => {
        const resumed = await send(client, `/v2/sandboxes/${encodeURIComponent(id)}/connect`, options);
        output.value(resumed);
        output.line(`${id} runs`);
      }),
    );
  withClientOptions(sandbox.command('snapshot <id>'))
    .description('save a running sandbox; it goes on after a short pause')
    .option('--name <NAME>', 'a name to start sandboxes from')
    .action(async (id: string, options: { name?: string }, command) =>
      session.withClient(command, async (client, output) => {
        const path = `/sandboxes/${encodeURIComponent(id)}/snapshots`;
        const { snapshotID } = await send<{ snapshotID: string }>(client, path, options);
        const facts = await client.json<{ pauseMs: Record<string, number> }>(`/v1/snapshots/${snapshotID}`);
        output.value(facts);
        output.line(snapshotID);
        output.error(
          `paused for ${facts.pauseMs.total?.toFixed(1)} ms; try: thaw sandbox create ${options.name ?? snapshotID}`,
        );
      }),
    );
  withClientOptions(sandbox.command('fork <id>'))
    .description('clones of a running sandbox as it is now')
    .option('--count <N>', 'how many', wholeNumber, 1)
    .option('--timeout <SECONDS>', 'how long each may live', wholeNumber, 300)
    .action(async (id: string, options: { count: number; timeout: number }, command) =>
      session.withClient(command, async (client, output) => {
        const path = `/sandboxes/${encodeURIComponent(id)}/fork`;
        type Fork = { sandbox?: { sandboxID: string }; error?: { message: string } };
        const forks = await send<Fork[]>(client, path, options);
        output.value({ forks });
        for (const fork of forks) output.line(fork.sandbox?.sandboxID ?? `failed: ${fork.error?.message}`);
      }),
    );
}
