// Owns `thaw snapshot`: ls, inspect, rm. Refuses to own taking them (sandbox-capture.ts).
import { table } from '../output.ts';
import { type AddCommand, withClientOptions } from '../session.ts';

interface SnapshotRow {
  snapshotId: string;
  names: string[];
  kind: string;
  sandboxId: string | null;
  parent: string | null;
  children: string[];
  clones: number;
  sizeBytes: number;
  uniqueBytes: number;
  dirtyPages: number | null;
  pauseMs: Record<string, number>;
  compatibility: Record<string, string>;
  createdAt: string;
}

const mb = (bytes: number): string => `${(bytes / 1024 / 1024).toFixed(1)} MB`;

export const addSnapshot: AddCommand = (program, session) => {
  const snapshot = program.command('snapshot').description('saved VMs: list, inspect, remove');
  withClientOptions(snapshot.command('ls'))
    .description('all snapshots as a tree: what was saved from what')
    .action(async (_options, command) =>
      session.withClient(command, async (client, output) => {
        const { snapshots } = await client.json<{ snapshots: SnapshotRow[] }>('/v1/snapshots');
        output.value({ snapshots });
        output.line(
          table(
            ['SNAPSHOT', 'NAMES', 'KIND', 'CLONES', 'MEMORY', 'UNIQUE', 'PAUSE', 'CREATED'],
            treeOf(snapshots).map(({ row, depth }) => [
              `${'  '.repeat(depth)}${row.snapshotId}`,
              row.names.join(' '),
              row.kind,
              row.clones,
              mb(row.sizeBytes),
              mb(row.uniqueBytes),
              row.pauseMs.total === undefined ? null : `${row.pauseMs.total.toFixed(1)} ms`,
              row.createdAt,
            ]),
          ),
        );
      }),
    );
  withClientOptions(snapshot.command('inspect <id>'))
    .description('one snapshot, by id or name: lineage, sizes, pause by stage, what it fits to')
    .action(async (id: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        const row = await client.json<SnapshotRow>(`/v1/snapshots/${encodeURIComponent(id)}`);
        output.value(row);
        const pauses = Object.entries(row.pauseMs).map(([stage, ms]) => [
          `pause: ${stage}`,
          `${ms.toFixed(2)} ms`,
        ]);
        const fits = Object.entries(row.compatibility).map(([key, value]) => [`fits: ${key}`, value]);
        output.line(
          table(
            ['WHAT', 'VALUE'],
            [
              ['snapshot', row.snapshotId],
              ['names', row.names.join(' ')],
              ['kind', row.kind],
              ['sandbox', row.sandboxId],
              ['parent', row.parent],
              ['children', row.children.join(' ')],
              ['clones that run', row.clones],
              ['memory', mb(row.sizeBytes)],
              ['unique', mb(row.uniqueBytes)],
              ['dirty pages', row.dirtyPages],
              ...pauses,
              ...fits,
              ['created', row.createdAt],
            ],
          ),
        );
      }),
    );
  withClientOptions(snapshot.command('rm <id>'))
    .description('remove a snapshot, by id or name; clones of it run on')
    .action(async (id: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        await client.json(`/v1/snapshots/${encodeURIComponent(id)}`, { method: 'DELETE' });
        output.value({ removed: id });
        output.line(`${id} is removed`);
      }),
    );
};

/** Parents before their children, each child one step in. A parent that is gone leaves its children as roots. */
export function treeOf(rows: SnapshotRow[]): { row: SnapshotRow; depth: number }[] {
  const known = new Set(rows.map((row) => row.snapshotId));
  const below = (parent: string | null, depth: number): { row: SnapshotRow; depth: number }[] =>
    rows
      .filter((row) => (row.parent !== null && known.has(row.parent) ? row.parent : null) === parent)
      .flatMap((row) => [{ row, depth }, ...below(row.snapshotId, depth + 1)]);
  return below(null, 0);
}
