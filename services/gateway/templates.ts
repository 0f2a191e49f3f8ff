// Owns templates that users build: their names and tags, what a name means to a new sandbox, and their snapshots.
// Refuses to own builds (template-builds.ts) and the wire (routes/templates.ts). Invariant: what a tag names changes in
// one step, and only to a build that is ready; what no tag names any more is removed, and sandboxes of it lose nothing.
import { ThawError } from '../../shared/errors.ts';
import { newTemplateId, snapshotNamePattern } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import type { NodeClient, SnapshotFacts } from './node-client.ts';
import type { StateStore, TemplateChange } from './state/state-store.ts';
import {
  isReserved,
  isTemplatesName,
  originOf,
  type SnapshotOrigin,
  splitName,
  templateNamePattern,
  templatesPrefix,
} from './template-names.ts';
import {
  buildOf,
  pruned,
  type TemplateBuild,
  type TemplateRecord,
  taggedBuild,
  withoutTags,
  withTags,
} from './template-record.ts';

/** What a sandbox starts from. */
export interface TemplateSource {
  templateId: string;
  snapshotId: string;
  alias: string | null;
}

export class Templates {
  readonly #node: NodeClient;
  readonly #state: StateStore;
  readonly #log: Log;

  constructor(options: { node: NodeClient; state: StateStore; log: Log }) {
    this.#node = options.node;
    this.#state = options.state;
    this.#log = options.log;
  }

  list(): TemplateRecord[] {
    return this.#state.templates.list();
  }

  /** By name or id. @throws ThawError `template-not-found`. */
  get(nameOrId: string): TemplateRecord {
    const record = this.#state.templates.get(nameOrId);
    if (record === undefined) throw missing(nameOrId);
    return record;
  }

  /** What a new sandbox of NAME, NAME:TAG, an id or a snapshot starts from. @throws ThawError `template-not-found`. */
  async resolve(word: string): Promise<TemplateSource> {
    const { name, tag } = splitName(word);
    const record = this.#state.templates.get(name);
    if (record === undefined) {
      const { snapshotId, alias } = await this.#node.resolveTemplate(askable(word));
      return { templateId: word, snapshotId, alias: alias !== null && isTemplatesName(alias) ? null : alias };
    }
    const build = taggedBuild(record, tag);
    if (!build?.snapshotId)
      throw new ThawError('template-not-found', `template ${name} has no build that is ready under ${tag}`);
    return { templateId: record.templateId, snapshotId: build.snapshotId, alias: record.name };
  }

  /** The snapshot that a template's NAME or NAME:TAG stands for; any other word as it is. */
  contentOf(word: string): string {
    const { name, tag } = splitName(word);
    const record = this.#state.templates.get(name);
    return (record && taggedBuild(record, tag)?.snapshotId) ?? word;
  }

  /** @throws ThawError `bad-request` | `conflict` for a name that a template may not have. */
  async requireName(name: string): Promise<void> {
    if (!templateNamePattern.test(name))
      throw new ThawError('bad-request', `a template's name must match ${templateNamePattern.source}`);
    if (isReserved(name)) throw new ThawError('conflict', `the name ${name} is Thaw's own`);
    if (this.#state.templates.get(name)) return;
    const snapshots = await this.#node.listSnapshots();
    if (snapshots.some(({ names }) => names.includes(name)))
      throw new ThawError('conflict', `a snapshot of the name ${name} exists`);
  }

  /** With all its builds, none of which may run any more. @returns false when no template has this name or id. */
  async remove(nameOrId: string): Promise<boolean> {
    const record = this.#state.templates.get(nameOrId);
    if (record === undefined) return false;
    // Before the record: what is left of an interrupted removal can be removed again.
    for (const { snapshotId } of record.builds) if (snapshotId !== null) await this.discard(snapshotId);
    await this.#state.templates.change(record.name, () => undefined);
    for (const { buildId } of record.builds) await this.#state.templates.forgetLog(buildId);
    return true;
  }

  /** @param target NAME or NAME:TAG. @throws ThawError `template-not-found`. */
  async assignTags(target: string, tags: string[]): Promise<TemplateBuild> {
    const { name, tag } = splitName(target);
    const template = this.get(name);
    const build = taggedBuild(template, tag);
    if (build === undefined) throw missing(target);
    const at = new Date().toISOString();
    await this.change(template.name, (known) => {
      if (known === undefined || taggedBuild(known, tag)?.buildId !== build.buildId) throw missing(target);
      return withTags(known, build.buildId, tags, at);
    });
    return build;
  }

  /** @throws ThawError `template-not-found`. */
  async removeTags(name: string, tags: string[]): Promise<void> {
    const template = this.get(name);
    const unknown = tags.find((tag) => !Object.hasOwn(template.tags, tag));
    if (unknown !== undefined) throw missing(`${template.name}:${unknown}`);
    await this.change(template.name, (known) => known && withoutTags(known, tags));
  }

  /** Any other snapshot, by id or name. @throws ThawError `template-not-found` | `conflict` for the content of a template. */
  async removeSnapshot(idOrName: string): Promise<void> {
    const snapshot = await this.#node.inspectSnapshot(askable(idOrName));
    const owner = this.ownerOf(snapshot);
    if (owner !== undefined)
      throw new ThawError(
        'conflict',
        `${snapshot.snapshotId} is the template ${owner.name}; remove that instead`,
      );
    await this.#node.removeSnapshot(snapshot.snapshotId);
  }

  /** @throws ThawError `conflict` | `bad-request` for a name that a snapshot may not have. */
  requireFree(name: string): void {
    if (isTemplatesName(name))
      throw new ThawError('bad-request', `names under ${templatesPrefix} are Thaw's own`);
    if (this.#state.templates.get(splitName(name).name))
      throw new ThawError('conflict', `a template of the name ${name} exists`);
  }

  /** The template whose content this snapshot is: it is removed with that, and only with that. */
  ownerOf(snapshot: Pick<SnapshotFacts, 'snapshotId'>): TemplateRecord | undefined {
    const { snapshotId } = snapshot;
    return this.list().find(({ builds }) => builds.some((build) => build.snapshotId === snapshotId));
  }

  /**
   * Makes names and snapshots agree after a start: of a template whose record was lost, its snapshots say what it was;
   * a known build that is not ready left its snapshot when its end was interrupted. All others are somebody else's, who
   * shares the store.
   */
  async resume(): Promise<void> {
    const adopted = new Set<string>();
    for (const snapshot of (await this.#node.listSnapshots()).toReversed()) {
      const origin = originOf(snapshot);
      if (origin === undefined || this.ownerOf(snapshot) || (await this.#isBeingBuilt(origin))) continue;
      const known = this.#state.templates.get(origin.name);
      if (known === undefined) adopted.add(origin.name);
      if (adopted.has(origin.name)) await this.#adopt(snapshot, origin);
      else if (buildOf(known, origin.buildId)) await this.discard(snapshot.snapshotId);
    }
  }

  /** By another gateway. */
  async #isBeingBuilt({ name, buildId }: SnapshotOrigin): Promise<boolean> {
    const build = buildOf(this.#state.templates.get(name), buildId);
    return build?.state === 'building' && (await this.#state.templates.isHeld(buildId));
  }

  async #adopt(snapshot: SnapshotFacts, { name, tag, buildId }: SnapshotOrigin): Promise<void> {
    const { snapshotId, createdAt, memoryMb, vcpus } = snapshot;
    const build: TemplateBuild = {
      ...{ buildId, state: 'ready', tags: [tag], snapshotId, createdAt, finishedAt: createdAt, error: null },
      wanted: { memoryMb: null, cpuCount: null, minFreeDiskMb: null },
      facts: { memoryMb, cpuCount: vcpus, diskSizeMb: 0 },
    };
    const fresh = { templateId: newTemplateId(), name, createdAt, tags: {}, builds: [] };
    await this.change(name, (known = fresh) =>
      withTags({ ...known, builds: [build, ...known.builds] }, buildId, [tag], createdAt),
    );
    this.#log.warn({ template: name, snapshotId }, 'a template whose record was lost is known again');
  }

  /** A change, and then the removal of what it left without a name. */
  async change(name: string, change: TemplateChange): Promise<TemplateRecord | undefined> {
    let surplus = { snapshotIds: [] as string[], buildIds: [] as string[] };
    const changed = await this.#state.templates.change(name, (known) => {
      const next = change(known);
      if (next === undefined || next === 'unchanged') return next;
      const { record, surplus: found } = pruned(next);
      surplus = found;
      return record;
    });
    for (const snapshotId of surplus.snapshotIds) await this.discard(snapshotId);
    for (const buildId of surplus.buildIds) await this.#state.templates.forgetLog(buildId).catch(() => {});
    return changed;
  }

  async discard(snapshotId: string): Promise<void> {
    await this.#node.removeSnapshot(snapshotId).catch((error: Error) => {
      if (error instanceof ThawError && error.code === 'template-not-found') return;
      this.#log.warn({ snapshotId, reason: error.message }, 'a snapshot of a template could not be removed');
    });
  }
}

/** The node is not asked for what nothing can be called. @throws ThawError `template-not-found`. */
function askable(word: string): string {
  if (!snapshotNamePattern.test(word)) throw missing(word);
  return word;
}

const missing = (word: string) =>
  new ThawError('template-not-found', `no template ${JSON.stringify(word.slice(0, 64))}`);
