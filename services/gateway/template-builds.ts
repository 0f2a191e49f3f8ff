// Owns the life of template builds: asked for, begun, watched, ended; by themselves, a deadline or a newer one.
// Refuses to own the work (template-build.ts), uploads (template-files.ts) and what names mean (templates.ts).
// Invariant: a name moves to a build only when that is ready; a build that nobody works on any more is said to have failed.
import { randomUUID } from 'node:crypto';
import { Cleanup } from '../../shared/cleanup.ts';
import { ThawError } from '../../shared/errors.ts';
import { newTemplateId } from '../../shared/ids.ts';
import type { Log } from '../../shared/log.ts';
import { asThawError } from '../../shared/problem.ts';
import { BuildLog } from './build-log.ts';
import type { GatewayConfig } from './gateway-config.ts';
import type { NodeClient } from './node-client.ts';
import type { StateStore } from './state/state-store.ts';
import { type BuiltTemplate, buildTemplate, StepError } from './template-build.ts';
import { TemplateFiles } from './template-files.ts';
import { snapshotNameOf, splitName, tagPattern } from './template-names.ts';
import type { BuildPlan } from './template-plan.ts';
import {
  buildOf,
  defaultTag,
  type TemplateBuild,
  type TemplateRecord,
  withBuildState,
  withTags,
} from './template-record.ts';
import type { Templates } from './templates.ts';

/** A build whose gateway died is noticed after no longer than this. */
const leaseMs = 15_000;
const leaseRenewalMs = 5_000;
const abandoned = 'the gateway ended while this was being built; build again';

export interface WantedBuild {
  name: string;
  tags: string[];
  memoryMb: number | null;
  cpuCount: number | null;
  minFreeDiskMb: number | null;
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

export interface TemplateBuildsOptions {
  templates: Templates;
  node: NodeClient;
  state: StateStore;
  log: Log;
  config: GatewayConfig;
}

export class TemplateBuilds {
  readonly files: TemplateFiles;
  readonly #templates: Templates;
  readonly #node: NodeClient;
  readonly #state: StateStore;
  readonly #log: Log;
  readonly #config: GatewayConfig;
  readonly #running = new Map<string, RunningBuild>();
  /** Of builds that run or are about to. */
  #count = 0;

  constructor({ templates, node, state, log, config }: TemplateBuildsOptions) {
    this.files = new TemplateFiles(config);
    this.#templates = templates;
    this.#node = node;
    this.#state = state;
    this.#log = log;
    this.#config = config;
  }

  /** Makes room for a build, and for the template unless there is one of this name. @throws ThawError `conflict` | `bad-request`. */
  async request(wanted: WantedBuild): Promise<KnownBuild> {
    const { name, tag } = splitName(wanted.name);
    const tags = wanted.name.includes(':') ? [tag, ...wanted.tags] : wanted.tags;
    await this.#templates.requireName(name);
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
    const template = await this.#templates.change(name, (known = fresh) => ({
      ...known,
      builds: [build, ...known.builds],
    }));
    return { template: template!, build };
  }

  /** @throws ThawError `template-not-found`. */
  build(templateId: string, buildId: string): KnownBuild {
    const template = this.#templates.get(templateId);
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
    const undo = new Cleanup();
    try {
      this.#takeRoom(undo);
      await this.#templates.resolve(plan.from);
      const hashes = plan.steps.flatMap((step) => (step.kind === 'copy' ? [step.filesHash] : []));
      const files = await this.files.take(hashes);
      undo.defer('files', () => files.release());
      await this.#begin(template.name, buildId);
    } catch (error) {
      await undo.run();
      throw error;
    }
    for (const other of this.#running.values())
      if (other.name === template.name && other.tags.some((tag) => build.tags.includes(tag)))
        other.controller.abort(new ThawError('conflict', 'a newer build of the same name took its place'));
    const controller = new AbortController();
    const finished = this.#run(template.name, build, plan, controller).finally(() => undo.run());
    this.#running.set(buildId, { name: template.name, tags: build.tags, controller, finished });
    undo.defer('running', () => this.#running.delete(buildId));
  }

  /** @throws ThawError `overloaded`. */
  #takeRoom(undo: Cleanup): void {
    if (this.#count >= this.#config.maxBuilds)
      throw new ThawError('overloaded', `${this.#count} builds are running; the limit is reached`, {
        retryAfterSeconds: 5,
      });
    this.#count++;
    undo.defer('room', () => this.#count--);
  }

  /** @throws ThawError `conflict` when somebody else was faster. */
  async #begin(name: string, buildId: string): Promise<void> {
    await this.#state.templates.hold(buildId, leaseMs);
    let begun = false;
    await this.#templates.change(name, (known) => {
      const building = known && withBuildState(known, buildId, 'building');
      begun = building !== undefined;
      return building ?? 'unchanged';
    });
    if (!begun) throw started(buildId);
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
      await this.#finish(name, build, built, controller.signal);
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
    const source =
      sized && fromBase ? await this.#node.baseOfSize(shape) : await this.#templates.resolve(plan.from);
    signal.throwIfAborted();
    return await buildTemplate({
      node: this.#node,
      plan,
      sourceSnapshotId: source.snapshotId,
      snapshotName: snapshotNameOf({ name, tag: build.tags[0]!, buildId: build.buildId }),
      minFreeDiskMb,
      filesPath: (hash) => this.files.pathOf(hash),
      log,
      readyTimeoutMs: this.#config.templateReadyTimeoutMs,
      // Its own deadline comes first; this one is for a gateway that is gone.
      endAtMs: Date.now() + this.#config.templateBuildTimeoutMs + leaseMs,
      signal,
    });
  }

  /** @throws ThawError when it was given up, or its template is gone: then its snapshot is, too. */
  async #finish(
    name: string,
    { buildId, tags }: TemplateBuild,
    built: BuiltTemplate,
    signal: AbortSignal,
  ): Promise<void> {
    const finishedAt = new Date().toISOString();
    const ready = { snapshotId: built.snapshotId, facts: built.facts, finishedAt };
    let kept = false;
    try {
      await this.#templates.change(name, (known) => {
        signal.throwIfAborted();
        const finished = known && withBuildState(known, buildId, 'ready', ready);
        kept = finished !== undefined;
        return finished === undefined ? 'unchanged' : withTags(finished, buildId, tags, finishedAt);
      });
    } finally {
      if (!kept) await this.#templates.discard(built.snapshotId);
    }
    if (!kept) throw new ThawError('conflict', 'the template has been removed');
    this.#log.info({ template: name, buildId }, 'a template is ready');
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
    await this.#templates.change(
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

  /** Ends the running builds of a template and waits for that. */
  async stop(template: string): Promise<void> {
    const ended: Promise<void>[] = [];
    for (const { name, controller, finished } of this.#running.values())
      if (name === template) {
        controller.abort(new ThawError('conflict', 'the template has been removed'));
        ended.push(finished);
      }
    await Promise.all(ended);
  }

  /** After a start: what an earlier run left unfinished has failed, unless another gateway works on it. */
  async resume(): Promise<void> {
    for (const { templateId, builds } of this.#templates.list())
      for (const { buildId, state } of builds)
        if (state === 'building') await this.status(templateId, buildId);
  }

  /** Ends running builds, for their sandboxes end with this process. */
  async close(): Promise<void> {
    const running = [...this.#running.values()];
    for (const { controller } of running) controller.abort(new ThawError('shutting-down', abandoned));
    await Promise.all(running.map(({ finished }) => finished));
  }
}

const described = (message: string, step: string | null): string =>
  step !== null && /^[0-9]+$/.test(step) ? `step ${step}: ${message}` : message;

const started = (buildId: string) =>
  new ThawError('conflict', `the build ${buildId} has been started already`);
