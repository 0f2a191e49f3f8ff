// Owns `thaw logs`: what a function's program wrote lately, and with --follow what it writes from now on.
import type { LogEvent } from '../../../shared/agent-protocol.ts';
import { readEvents } from '../event-stream.ts';
import type { Output } from '../output.ts';
import { type AddCommand, withClientOptions } from '../session.ts';

/** Kept lines are sent at once; this long without one, they have all come. */
const quietMs = 500;

export const addLogs: AddCommand = (program, session) => {
  withClientOptions(program.command('logs <name>'))
    .description('the last lines a function wrote')
    .option('-f, --follow', 'go on with what it writes from now on')
    .action(async (name: string, options: { follow?: boolean }, command) =>
      session.withClient(command, async (client, output) => {
        const stop = new AbortController();
        const response = await client.open(`/v1/functions/${encodeURIComponent(name)}/logs`, {
          signal: stop.signal,
        });
        const quiet = options.follow ? undefined : setTimeout(() => stop.abort(), quietMs);
        try {
          for await (const { event, data } of readEvents(response.body)) {
            quiet?.refresh();
            if (event === 'log') show(output, JSON.parse(data) as LogEvent);
          }
        } catch (error) {
          if (!stop.signal.aborted) throw error;
        } finally {
          clearTimeout(quiet);
        }
      }),
    );
};

function show(output: Output, event: LogEvent): void {
  // One object per line, so that a follower can read them as they come.
  if (output.json) output.stdout.write(`${JSON.stringify(event)}\n`);
  if (event.dropped) output.line(`(${event.dropped} lines were dropped)`);
  output.line(`${new Date(event.atMs).toISOString()} ${event.stream === 'stderr' ? 'E' : ' '} ${event.line}`);
}
