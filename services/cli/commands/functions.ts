// Owns `thaw functions`: the list of what is deployed, and removal.
import { table } from '../output.ts';
import { type AddCommand, withClientOptions } from '../session.ts';

interface FunctionRow {
  name: string;
  url: string;
  currentVersion: number | null;
  current: { manifest: { runtime: string; memoryMb: number; recycle: string } } | null;
  versions: { version: number; state: string }[];
  pool?: Record<string, number>;
}

export const addFunctions: AddCommand = (program, session) => {
  const functions = withClientOptions(program.command('functions'))
    .description('list the functions that are deployed')
    .action(async (_options, command) =>
      session.withClient(command, async (client, output) => {
        const listing = await client.json<{ functions: FunctionRow[] }>('/v1/functions');
        output.value(listing);
        output.line(
          table(
            ['NAME', 'VERSION', 'STATE', 'RUNTIME', 'MEMORY', 'VMS', 'URL'],
            listing.functions.map((row) => rowOf(row, client.url)),
          ),
        );
      }),
    );
  withClientOptions(functions.command('rm <name>'))
    .description('stop serving a function and delete its versions')
    .action(async (name: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        await client.json(`/v1/functions/${encodeURIComponent(name)}`, { method: 'DELETE' });
        output.value({ removed: name });
        output.line(`${name} is removed`);
      }),
    );
};

function rowOf(row: FunctionRow, url: string) {
  const manifest = row.current?.manifest;
  const newest = row.versions[0]?.state;
  const vms = Object.entries(row.pool ?? {})
    .filter(([, count]) => count > 0)
    .map(([state, count]) => `${count} ${state}`);
  return [
    row.name,
    row.currentVersion,
    row.current === null ? newest : 'ready',
    manifest?.runtime,
    manifest === undefined ? null : `${manifest.memoryMb} MB`,
    vms.join(', ') || '0',
    `${url}${row.url}`,
  ];
}
