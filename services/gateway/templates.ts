// Owns templates that users build: their names and tags, the life of builds, and what a name means to a new sandbox.
// Refuses to own the work of a build (template-build.ts), uploads (template-files.ts) and the wire (routes/templates.ts).
// Invariant: what a tag names changes in one step, and only to a build that is ready; sandboxes of what it named before
// lose nothing; a build that nobody works on any more is said to have failed.
import { randomUUID } from 'node:crypto';
import { ThawError } from '../../shared/errors.ts';
import { newTemplateId, snapshotIdPattern, templateIdPattern } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import { asThawError } from '../../shared/problem.ts';
import { BuildLog } from './build-log.ts';
import type { GatewayConfig } from './gateway-config.ts';
import type { NodeClient, SnapshotFacts } from './node-client.ts';
import type { StateStore } from './state/state-store.ts';
import { type BuiltTemplate, buildTemplate, StepError } from './template-build.ts';
import { TemplateFiles } from './template-files.ts';
import type { BuildPlan } from './template-plan.ts';
import {
  buildOf,
  defaultTag,
  pruned,
  type TemplateBuild,
  type TemplateRecord,
  taggedBuild,
  withBuildState,
  withoutTags,
  withTags,
} from './template-record.ts';
import { tagPattern, templateNamePattern } from './template-schemas.ts';

/** A build whose gateway died is noticed after no longer than this. */
const leaseMs = 15_000;
const leaseRenewalMs = 5_000;
const abandoned = 'the gateway ended while this was being built; build again';
const snapshotPrefix = 'template/';

export interface WantedBuild {
  name: string;
  tags: string[];
  memoryMb: number | null;
  cpuCount: number | null;
  minFreeDiskMb: number | null;
}

/** What a sandbox starts from. */
export interface TemplateSource {
  templateId: string;
  snapshotId: string;
  alias: string | null;
}

export interface KnownBuild {
  template: TemplateRecord;
  build: TemplateBuild;
}

interface RunningBuild {
  name: string;
  tags: string[];
  controller: AbortController;
  finished: Promise<void>;
}

export class Templates {
  readonly files: TemplateFiles;
  readonly #node: NodeClient;
  readonly #state: StateStore;
  readonly #log: Log;
  readonly #config: GatewayConfig;
  readonly #running = new Map<string, RunningBuild>();

  constructor(options: { node: NodeClient; state: StateStore; log: Log; config: GatewayConfig }) {
    this.#node = options.node;
    this.#state = options.state;
    this.#log = options.log;
    this.#config = options.config;
    this.files = new TemplateFiles(options.config);
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
    const { name, tag } = split(word);
    const record = this.#state.templates.get(name);
    if (record === undefined) {
      const { snapshotId, alias } = await this.#node.resolveTemplate(word);
      return { templateId: word, snapshotId, alias: alias !== null && isTemplatesName(alias) ? null : alias };
    }
    const build = taggedBuild(record, tag);
    if (!build?.snapshotId)
      throw new ThawError('template-not-found', `template ${name} has no build that is ready under ${tag}`);
    return { templateId: record.templateId, snapshotId: build.snapshotId, alias: record.name };
  }

  /** Makes room for a build, and for the template unless there is one of this name. @throws ThawError `conflict` | `bad-request`. */
  async request(wanted: WantedBuild): Promise<KnownBuild> {
    const { name, tag } = split(wanted.name);
    const tags = wanted.name.includes(':') ? [tag, ...wanted.tags] : wanted.tags;
    await this.#requireName(name);
    if (!tagPattern.test(tag)) throw new ThawError('bad-request', `a tag must match ${tagPattern.source}`);
    const at = new Date().toISOString();
    const { memoryMb, cpuCount, minFreeDiskMb } = wanted;
    const build: TemplateBuild = {
      buildId: randomUUID(),
      state: 'waiting',
      tags: [...new Set(tags.length > 0 ? tags : [defaultTag])],
      wanted: { memoryMb, cpuCount, minFreeDiskMb },
      ...{ snapshotId: null, facts: null, createdAt: at, finishedAt: null, error: null },
    };
    const fresh = { templateId: newTemplateId(), name, createdAt: at, tags: {}, builds: [] };
    const template = await this.#change(name, (known = fresh) => ({
      ...known,
      builds: [build, ...known.builds],
    }));
    return { template: template!, build };
  }

  async #requireName(name: string): Promise<void> {
    if (!templateNamePattern.test(name))
      throw new ThawError('bad-request', `a template's name must match ${templateNamePattern.source}`);
    const reserved = name === 'base' || templateIdPattern.test(name) || snapshotIdPattern.test(name);
    if (reserved) throw new ThawError('conflict', `the name ${name} is Thaw's own`);
    if (this.#state.templates.get(name)) return;
    const snapshots = await this.#node.listSnapshots();
    if (snapshots.some(({ names }) => names.includes(name)))
      throw new ThawError('conflict', `a snapshot of the name ${name} exists`);
  }

  /** @throws ThawError `template-not-found`. */
  build(templateId: string, buildId: string): KnownBuild {
    const template = this.get(templateId);
    const build = buildOf(template, buildId);
    if (build === undefined)
      throw new ThawError(
        'template-not-found',
        `template ${template.name} has no build ${buildId.slice(0, 64)}`,
      );
    return { template, build };
  }

  /** Begins the work; older builds that would get one of its tags are ended. @throws ThawError `conflict` | `overloaded` | … */
  async start(templateId: string, buildId: string, plan: BuildPlan): Promise<void> {
    const { template, build } = this.build(templateId, buildId);
    if (build.state !== 'waiting') throw started(buildId);
    if (this.#running.size >= this.#config.maxBuilds)
      throw new ThawError('overloaded', `${this.#running.size} builds are running; the limit is reached`, {
        retryAfterSeconds: 5,
      });
    await this.resolve(plan.from);
    const files = await this.files.take(
      plan.steps.flatMap((step) => (step.kind === 'copy' ? [step.filesHash] : [])),
    );
    try {
      await this.#state.templates.hold(buildId, leaseMs);
      const changed = await this.#change(template.name, (known) =>
        known === undefined ? 'unchanged' : (withBuildState(known, buildId, 'building') ?? 'unchanged'),
      );
      if (buildOf(changed, buildId)?.state !== 'building' || this.#running.has(buildId))
        throw started(buildId);
    } catch (error) {
      files.release();
      throw error;
    }
    for (const other of this.#running.values())
      if (other.name === template.name && other.tags.some((tag) => build.tags.includes(tag)))
        other.controller.abort(new ThawError('conflict', 'a newer build of the same name took its place'));
    const controller = new AbortController();
    const finished = this.#run(template.name, build, plan, controller).finally(() => {
      files.release();
      this.#running.delete(buildId);
    });
    this.#running.set(buildId, { name: template.name, tags: build.tags, controller, finished });
  }

  async #run(
    name: string,
    build: TemplateBuild,
    plan: BuildPlan,
    controller: AbortController,
  ): Promise<void> {
    const { buildId } = build;
    const { templateBuildTimeoutMs: timeoutMs } = this.#config;
    const log = new BuildLog(this.#state.templates, buildId, this.#log);
    const tooLate = new ThawError('deadline-exceeded', `the build took longer than ${timeoutMs} ms`);
    const deadline = setTimeout(() => controller.abort(tooLate), timeoutMs).unref();
    const renew = () => void this.#state.templates.hold(buildId, leaseMs).catch(() => {});
    const lease = setInterval(renew, leaseRenewalMs).unref();
    try {
      const built = await this.#work(name, build, plan, log, controller.signal);
      await log.flush();
      await this.#finish(name, build, built);
    } catch (error) {
      const step = error instanceof StepError ? error.step : null;
      const aborted = controller.signal.aborted ? controller.signal.reason : undefined;
      const cause = aborted ?? (error instanceof StepError ? error.cause : error);
      await this.#fail(name, buildId, asThawError(cause), step, log);
    } finally {
      clearTimeout(deadline);
      clearInterval(lease);
      controller.abort();
    }
  }

  async #work(
    name: string,
    build: TemplateBuild,
    plan: BuildPlan,
    log: BuildLog,
    signal: AbortSignal,
  ): Promise<BuiltTemplate> {
    const { memoryMb, cpuCount, minFreeDiskMb } = build.wanted;
    const sized = memoryMb !== null || cpuCount !== null;
    const shape = { ...(memoryMb ? { memoryMb } : {}), ...(cpuCount ? { cpuCount } : {}) };
    const fromBase = plan.from === 'base';
    if (sized && !fromBase)
      log.add('base', `its size is that of ${plan.from}: cpuCount and memoryMB count only from base`, 'warn');
    const source = sized && fromBase ? await this.#node.baseOfSize(shape) : await this.resolve(plan.from);
    signal.throwIfAborted();
    return await buildTemplate({
      node: this.#node,
      plan,
      sourceSnapshotId: source.snapshotId,
      snapshotName: `${snapshotPrefix}${name}:${build.tags[0]}/${build.buildId}`,
      minFreeDiskMb,
      filesPath: (hash) => this.files.pathOf(hash),
      log,
      readyTimeoutMs: this.#config.templateReadyTimeoutMs,
      // Its own deadline comes first; this one is for a gateway that is gone.
      endAtMs: Date.now() + this.#config.templateBuildTimeoutMs + leaseMs,
      signal,
    });
  }

  async #finish(name: string, { buildId, tags }: TemplateBuild, built: BuiltTemplate): Promise<void> {
    const finishedAt = new Date().toISOString();
    const ready = { snapshotId: built.snapshotId, facts: built.facts, finishedAt };
    let kept = false;
    try {
      await this.#change(name, (known) => {
        const finished = known && withBuildState(known, buildId, 'ready', ready);
        kept = finished !== undefined;
        return finished === undefined ? 'unchanged' : withTags(finished, buildId, tags, finishedAt);
      });
    } finally {
      if (!kept) await this.#discard(built.snapshotId);
    }
    this.#log.info({ template: name, buildId, kept }, 'a template build has finished');
  }

  async #fail(
    name: string,
    buildId: string,
    error: ThawError,
    step: string | null,
    log: BuildLog,
  ): Promise<void> {
    const { code, message } = error;
    const internal = code === 'internal' ? { err: error.cause ?? error } : {};
    this.#log.warn({ template: name, buildId, step, code, ...internal }, 'a template build has failed');
    log.add(step ?? 'base', message, 'error');
    await log.flush();
    const failure = {
      error: { message: described(message, step), step },
      finishedAt: new Date().toISOString(),
    };
    await this.#markFailed(name, buildId, failure).catch((reason: Error) => {
      // Its lease runs out, and whoever asks for its status marks it as failed.
      this.#log.warn({ buildId, reason: reason.message }, 'a failed build could not be recorded');
    });
  }

  async #markFailed(name: string, buildId: string, failure: Partial<TemplateBuild>): Promise<void> {
    await this.#change(
      name,
      (known) => (known && withBuildState(known, buildId, 'error', failure)) ?? 'unchanged',
    );
  }

  /** As it stands now; one whose gateway is gone has failed. */
  async status(templateId: string, buildId: string): Promise<KnownBuild> {
    const known = this.build(templateId, buildId);
    const { template, build } = known;
    if (build.state !== 'building' || this.#running.has(buildId)) return known;
    if (await this.#state.templates.isHeld(buildId)) return known;
    const failure = { error: { message: abandoned, step: null }, finishedAt: new Date().toISOString() };
    await this.#markFailed(template.name, buildId, failure);
    return this.build(templateId, buildId);
  }

  /** @returns false when no template has this name or id. Running builds of it are ended; sandboxes live on. */
  async remove(nameOrId: string): Promise<boolean> {
    const record = this.#state.templates.get(nameOrId);
    if (record === undefined) return false;
    const ended: Promise<void>[] = [];
    for (const { name, controller, finished } of this.#running.values())
      if (name === record.name) {
        controller.abort(new ThawError('conflict', 'the template has been removed'));
        ended.push(finished);
      }
    await Promise.all(ended);
    const builds = this.#state.templates.get(nameOrId)?.builds ?? [];
    // Before the record: what is left of an interrupted removal can be removed again.
    for (const { snapshotId } of builds) if (snapshotId !== null) await this.#discard(snapshotId);
    await this.#state.templates.change(record.name, () => undefined);
    for (const { buildId } of builds) await this.#state.templates.forgetLog(buildId);
    return true;
  }

  /** @param target NAME or NAME:TAG. @throws ThawError `template-not-found`. */
  async assignTags(target: string, tags: string[]): Promise<TemplateBuild> {
    const { name, tag } = split(target);
    const template = this.get(name);
    const build = taggedBuild(template, tag);
    if (build === undefined) throw missing(target);
    const at = new Date().toISOString();
    await this.#change(template.name, (known) => {
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
    await this.#change(template.name, (known) => known && withoutTags(known, tags));
  }

  /** Any other snapshot, by id or name. @throws ThawError `template-not-found` | `conflict` for the content of a template. */
  async removeSnapshot(idOrName: string): Promise<void> {
    const snapshot = await this.#node.inspectSnapshot(idOrName);
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
      throw new ThawError('bad-request', `names under ${snapshotPrefix} are Thaw's own`);
    if (this.#state.templates.get(split(name).name))
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
    for (const { templateId, builds } of this.list())
      for (const { buildId, state } of builds)
        if (state === 'building') await this.status(templateId, buildId);
    const adopted = new Set<string>();
    for (const snapshot of (await this.#node.listSnapshots()).toReversed()) {
      const origin = originOf(snapshot);
      if (origin === undefined || this.ownerOf(snapshot) || (await this.#isBeingBuilt(origin))) continue;
      const known = this.#state.templates.get(origin.name);
      if (known === undefined) adopted.add(origin.name);
      if (adopted.has(origin.name)) await this.#adopt(snapshot, origin);
      else if (buildOf(known, origin.buildId)) await this.#discard(snapshot.snapshotId);
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
    await this.#change(name, (known = fresh) =>
      withTags({ ...known, builds: [build, ...known.builds] }, buildId, [tag], createdAt),
    );
    this.#log.warn({ template: name, snapshotId }, 'a template whose record was lost is known again');
  }

  /** Ends running builds, for their sandboxes end with this process. */
  async close(): Promise<void> {
    const running = [...this.#running.values()];
    for (const { controller } of running) controller.abort(new ThawError('shutting-down', abandoned));
    await Promise.all(running.map(({ finished }) => finished));
  }

  /** A change, and then the removal of what it left without a name. */
  async #change(
    name: string,
    change: (known: TemplateRecord | undefined) => TemplateRecord | undefined | 'unchanged',
  ): Promise<TemplateRecord | undefined> {
    let surplus = { snapshotIds: [] as string[], buildIds: [] as string[] };
    const changed = await this.#state.templates.change(name, (known) => {
      const next = change(known);
      if (next === undefined || next === 'unchanged') return next;
      const { record, surplus: found } = pruned(next);
      surplus = found;
      return record;
    });
    for (const snapshotId of surplus.snapshotIds) await this.#discard(snapshotId);
    for (const buildId of surplus.buildIds) await this.#state.templates.forgetLog(buildId).catch(() => {});
    return changed;
  }

  async #discard(snapshotId: string): Promise<void> {
    await this.#node.removeSnapshot(snapshotId).catch((error: Error) => {
      if (error instanceof ThawError && error.code === 'template-not-found') return;
      this.#log.warn({ snapshotId, reason: error.message }, 'a snapshot of a template could not be removed');
    });
  }
}

interface SnapshotOrigin {
  name: string;
  tag: string;
  buildId: string;
}

/** What the name of a template's snapshot says; undefined for any other snapshot. */
export function originOf({ names, kind }: Pick<SnapshotFacts, 'names' | 'kind'>): SnapshotOrigin | undefined {
  if (kind !== 'sandbox') return undefined;
  const found = names.find((name) => isTemplatesName(name));
  const match = found && /^template\/(.+):([^:/]+)\/([0-9a-f-]{36})$/.exec(found);
  return match ? { name: match[1]!, tag: match[2]!, buildId: match[3]! } : undefined;
}

/** True for names that only snapshots of templates may have. */
export const isTemplatesName = (name: string): boolean => name.startsWith(snapshotPrefix);

function split(word: string): { name: string; tag: string } {
  const colon = word.lastIndexOf(':');
  return colon < 0
    ? { name: word, tag: defaultTag }
    : { name: word.slice(0, colon), tag: word.slice(colon + 1) };
}

const described = (message: string, step: string | null): string =>
  step !== null && /^[0-9]+$/.test(step) ? `step ${step}: ${message}` : message;

const missing = (word: string) =>
  new ThawError('template-not-found', `no template ${JSON.stringify(word.slice(0, 64))}`);
const started = (buildId: string) =>
  new ThawError('conflict', `the build ${buildId} has been started already`);
