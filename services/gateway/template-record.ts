// Owns what is remembered of a template: its builds, their states as a table of single hops, and which build a tag names.
// Refuses to own where it is kept (state/template-store.ts) and the work of a build. Everything here is pure.
// Invariant: a tag names a ready build; a build that has ended never changes again.
import type { SandboxSize } from './node-client.ts';

/** In E2B's words; `waiting` has been asked for and not been told what to do. */
export type BuildState = 'waiting' | 'building' | 'ready' | 'error';

export const buildHops: Record<BuildState, readonly BuildState[]> = {
  waiting: ['building'],
  building: ['ready', 'error'],
  ready: [],
  error: [],
};

export interface TemplateBuild {
  buildId: string;
  state: BuildState;
  /** They name it when it is ready. */
  tags: string[];
  /** What was asked for; null where the source decides. */
  wanted: { memoryMb: number | null; cpuCount: number | null; minFreeDiskMb: number | null };
  /** Of a ready one. */
  snapshotId: string | null;
  facts: SandboxSize | null;
  createdAt: string;
  finishedAt: string | null;
  error: { message: string; step: string | null } | null;
}

export interface TemplateRecord {
  templateId: string;
  name: string;
  createdAt: string;
  tags: Record<string, { buildId: string; assignedAt: string }>;
  /** Newest first. */
  builds: TemplateBuild[];
}

export const defaultTag = 'default';
/** Enough to see what went wrong lately; more would only grow. */
const keptUntagged = 10;

export const buildOf = (record: TemplateRecord | undefined, buildId: string): TemplateBuild | undefined =>
  record?.builds.find((build) => build.buildId === buildId);

/** The ready build that a tag names. */
export const taggedBuild = (record: TemplateRecord, tag = defaultTag): TemplateBuild | undefined => {
  const named = Object.hasOwn(record.tags, tag) ? record.tags[tag]! : undefined;
  return named && buildOf(record, named.buildId);
};

/** @returns undefined when the table has no such hop: somebody else was faster. */
export function withBuildState(
  record: TemplateRecord,
  buildId: string,
  state: BuildState,
  change: Partial<TemplateBuild> = {},
): TemplateRecord | undefined {
  const known = buildOf(record, buildId);
  if (known === undefined || !buildHops[known.state].includes(state)) return undefined;
  const builds = record.builds.map((build) => (build === known ? { ...build, ...change, state } : build));
  return { ...record, builds };
}

/** Tags are moved, all at once; who had them before keeps only its others. */
export function withTags(
  record: TemplateRecord,
  buildId: string,
  tags: readonly string[],
  at: string,
): TemplateRecord {
  const added = Object.fromEntries(tags.map((tag) => [tag, { buildId, assignedAt: at }]));
  return { ...record, tags: { ...record.tags, ...added } };
}

export function withoutTags(record: TemplateRecord, tags: readonly string[]): TemplateRecord {
  const kept = Object.entries(record.tags).filter(([tag]) => !tags.includes(tag));
  return { ...record, tags: Object.fromEntries(kept) };
}

/** What nothing needs any more: snapshots of builds without a tag, and builds of long ago. */
export interface Surplus {
  snapshotIds: string[];
  buildIds: string[];
}

/** Takes the surplus out of a record. A build without a tag is remembered for a while, but not its content. */
export function pruned(record: TemplateRecord): { record: TemplateRecord; surplus: Surplus } {
  const named = new Set(Object.values(record.tags).map(({ buildId }) => buildId));
  const surplus: Surplus = { snapshotIds: [], buildIds: [] };
  let untagged = 0;
  const builds = record.builds.flatMap((build) => {
    if (named.has(build.buildId) || build.state === 'building') return [build];
    if (build.snapshotId !== null) surplus.snapshotIds.push(build.snapshotId);
    if (++untagged <= keptUntagged) return [{ ...build, snapshotId: null }];
    surplus.buildIds.push(build.buildId);
    return [];
  });
  return { record: { ...record, builds }, surplus };
}
