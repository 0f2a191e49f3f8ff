// Owns `thaw snapshot`: ls, inspect, verify, rm. Refuses to own taking them (sandbox-capture.ts).
import { ExitCode, exitCodes } from '../failure.ts';
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
  here: boolean;
  stored: 'yes' | 'waiting' | 'refused' | 'no';
  storedBytes: number | null;
  dirtyPages: number | null;
  pauseMs: Record<string, number>;
  compatibility: Record<string, string>;
  createdAt: string;
  workingSet?: { pages: number; clones: number } | null;
}

interface Verification {
  snapshotId: string;
  copies: {
    copy: 'local' | 'store';
    units: string;
    checked: number;
    bytes: number;
    damaged: { what: string; reason: string }[];
  }[];
}

/** Reading a large snapshot to its end. */
const verifyTimeoutMs = 900_000;
/** What a check says, and what it cannot say. */
const checkedHow = {
  local: 'record, files, sizes, read to the end; local files have no checksums',
  store: 'every frame, by its checksum',
};

const mb = (bytes: number): string => `${(bytes / 1024 / 1024).toFixed(1)} MB`;

export const addSnapshot: AddCommand = (program, session) => {
  const snapshot = program.command('snapshot').description('saved VMs: list, inspect, remove');
  withClientOptions(snapshot.command('ls'))
    .description('all snapshots as a tree: what was saved from what')
    .action(async (_options, command) =>
      session.withClient(command, async (client, output) => {
        const { snapshots } = await client.json<{ snapshots: SnapshotRow[] }>('/v1/snapshots');
        output.value({ snapshots });
        output.line(treeTable(treeOf(snapshots)));
      }),
    );
  withClientOptions(snapshot.command('inspect <id>'))
    .description('one snapshot, by id or name: lineage, sizes, pause by stage, what it fits to')
    .action(async (id: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        const row = await client.json<SnapshotRow>(`/v1/snapshots/${encodeURIComponent(id)}`);
        const { snapshots } = await client.json<{ snapshots: SnapshotRow[] }>('/v1/snapshots');
        const lineage = lineageOf(snapshots, row.snapshotId);
        output.value({
          ...row,
          lineage: lineage.map(({ row: { snapshotId }, depth }) => ({ snapshotId, depth })),
        });
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
              ['clones that run', row.clones],
              ['memory', mb(row.sizeBytes)],
              ['unique', mb(row.uniqueBytes)],
              ['on this node', row.here ? 'yes' : 'no, comes when it is needed'],
              [
                'in the store',
                row.storedBytes === null ? row.stored : `${row.stored}, ${mb(row.storedBytes)}`,
              ],
              ['dirty pages', row.dirtyPages],
              ['working set', workingSetIn(row)],
              ...pauses,
              ...fits,
              ['created', row.createdAt],
            ],
          ),
        );
        output.line(`\n${treeTable(lineage, row.snapshotId)}`);
      }),
    );
  withClientOptions(snapshot.command('verify <id>'))
    .description('read a snapshot, by id or name, to its end and say what is damaged')
    .action(async (id: string, _options, command) =>
      session.withClient(command, async (client, output) => {
        const path = `/v1/snapshots/${encodeURIComponent(id)}/verification`;
        const verification = await client.json<Verification>(path, { headersTimeoutMs: verifyTimeoutMs });
        output.value(verification);
        for (const { copy, units, checked, bytes, damaged } of verification.copies) {
          const verdict = damaged.length === 0 ? 'sound' : `${damaged.length} of ${checked} ${units} damaged`;
          output.line(`${copy}: ${verdict}; ${checked} ${units}, ${mb(bytes)} read (${checkedHow[copy]})`);
          for (const { what, reason } of damaged) output.line(`  ${what}: ${reason}`);
        }
        if (verification.copies.some(({ damaged }) => damaged.length > 0))
          throw new ExitCode(exitCodes.failed);
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

function workingSetIn({ workingSet }: SnapshotRow): string {
  if (workingSet === undefined) return 'not in the store';
  if (workingSet === null) return 'not known: the first clone that comes from the store is watched';
  const { pages, clones } = workingSet;
  return `${pages} pages (${mb(pages * 4096)}), seen in ${clones} clones`;
}

/** Parents before their children, each child one step in. A parent that is gone leaves its children as roots. */
export function treeOf(rows: SnapshotRow[]): TreeRow[] {
  const known = new Set(rows.map((row) => row.snapshotId));
  const parentOf = ({ parent }: SnapshotRow) => (parent !== null && known.has(parent) ? parent : null);
  const children = Map.groupBy(rows, parentOf);
  const tree: TreeRow[] = [];
  // No recursion: a lineage may be as deep as there are snapshots.
  const left = (children.get(null) ?? []).map((row) => ({ row, depth: 0 })).reverse();
  for (let next = left.pop(); next; next = left.pop()) {
    tree.push(next);
    const below = children.get(next.row.snapshotId) ?? [];
    for (const row of below.toReversed()) left.push({ row, depth: next.depth + 1 });
  }
  return tree;
}

interface TreeRow {
  row: SnapshotRow;
  depth: number;
}

/** Of one snapshot: what it came from, itself, and what came from it. */
export function lineageOf(rows: SnapshotRow[], snapshotId: string): TreeRow[] {
  const byId = new Map(rows.map((row) => [row.snapshotId, row]));
  const related = new Set<string>();
  for (let row = byId.get(snapshotId); row && !related.has(row.snapshotId); row = byId.get(row.parent ?? ''))
    related.add(row.snapshotId);
  const tree = treeOf(rows);
  const own = tree.findIndex(({ row }) => row.snapshotId === snapshotId);
  for (let at = own + 1; at < tree.length && tree[at]!.depth > tree[own]!.depth; at++)
    related.add(tree[at]!.row.snapshotId);
  return tree.filter(({ row }) => related.has(row.snapshotId));
}

/** @param marked pointed at. */
function treeTable(tree: TreeRow[], marked?: string): string {
  return table(
    ['SNAPSHOT', 'NAMES', 'KIND', 'CLONES', 'MEMORY', 'UNIQUE', 'STORED', 'PAUSE', 'CREATED'],
    tree.map(({ row, depth }) => [
      `${'  '.repeat(depth)}${row.snapshotId}${row.snapshotId === marked ? ' ←' : ''}`,
      row.names.join(' '),
      row.kind,
      row.clones,
      mb(row.sizeBytes),
      mb(row.uniqueBytes),
      row.here ? row.stored : 'only',
      row.pauseMs.total === undefined ? null : `${row.pauseMs.total.toFixed(1)} ms`,
      row.createdAt,
    ]),
  );
}
