// Owns the life of function versions: build, switch, keep, retire; and making them servable again after a start.
// Refuses to own uploads (bundle.ts) and VMs (the node). Invariant: the version that serves changes only after the
// next one is ready, and a failure at any step leaves the previous one serving.
import { randomUUID } from 'node:crypto';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { asThawError } from '../../shared/problem.ts';
import { type Bundle, bundlePathOf, incomingPrefix } from './bundle.ts';
import type { GatewayConfig } from './gateway-config.ts';
import type { EndpointRequest, FunctionVersion, NodeClient } from './node-client.ts';
import { servableOf } from './state/function-store.ts';
import type { FunctionView, NewVersion, StateStore, VersionRecord } from './state/state-store.ts';
import { advance } from './version-state.ts';

/** A build whose gateway died holds its function for no longer than this. */
const leaseMs = 15_000;
const leaseRenewalMs = 5_000;
const maxOutputChars = 16 * 1024;
/** Enough to see what went wrong lately; more would only grow. */
const keptFailures = 5;

export interface Deployment {
  record: VersionRecord;
  /** Settles with the finished record, ready or failed; never rejects. */
  finished: Promise<VersionRecord>;
}

/** What a version is made of: files, or a sandbox's snapshot. */
export type VersionSource = Bundle | Pick<EndpointRequest, 'manifest' | 'fromSnapshot'>;

export interface DeploymentsOptions {
  node: NodeClient;
  state: StateStore;
  log: Log;
  config: GatewayConfig;
}

export class Deployments {
  readonly #node: NodeClient;
  readonly #state: StateStore;
  readonly #log: Log;
  readonly #config: GatewayConfig;
  /** Bundles of deployments in work, by hash: not to be collected. */
  readonly #pinned = new Map<string, number>();
  #building = 0;

  constructor({ node, state, log, config }: DeploymentsOptions) {
    this.#node = node;
    this.#state = state;
    this.#log = log;
    this.#config = config;
  }

  /** @throws ThawError `overloaded` before an upload is read in vain. */
  requireRoom(): void {
    if (this.#building >= this.#config.maxBuilds)
      throw new ThawError('overloaded', `${this.#building} builds are running; the limit is reached`, {
        retryAfterSeconds: 5,
      });
  }

  /** @throws ThawError `conflict` while another version of this function is being built. */
  async begin(name: string, source: VersionSource): Promise<Deployment> {
    this.requireRoom();
    this.#building++;
    const wanted = wantedOf(name, source);
    this.#pin(wanted.bundleSha256);
    const token = randomUUID();
    try {
      const record = await this.#state.functions.beginVersion(wanted, token, leaseMs);
      return { record, finished: this.#finish(record, source, token) };
    } catch (error) {
      this.#ended(wanted.bundleSha256);
      await this.#collectBundle(wanted.bundleSha256);
      throw error;
    }
  }

  async #finish(record: VersionRecord, source: VersionSource, token: string): Promise<VersionRecord> {
    const finished = await this.#run(record, source, token);
    this.#ended(record.bundleSha256);
    await this.#collectBundle(record.bundleSha256);
    return finished;
  }

  async #run(record: VersionRecord, source: VersionSource, token: string): Promise<VersionRecord> {
    const output = new OutputTail();
    const controller = new AbortController();
    const lease = this.#keepLease(record.name, token, controller);
    try {
      await this.#failAbandoned(record);
      const ready = await this.#build(record, source, token, output, controller.signal);
      this.#log.info({ function: record.name, version: record.version }, 'version is ready');
      await this.#settle(record.name);
      return ready;
    } catch (error) {
      return await this.#fail(record, token, error, output);
    } finally {
      clearInterval(lease);
      controller.abort();
    }
  }

  async #build(
    record: VersionRecord,
    source: VersionSource,
    token: string,
    output: OutputTail,
    signal: AbortSignal,
  ): Promise<VersionRecord> {
    const { name, version } = record;
    const building = this.#snapshotOf(source, {
      ...{ name, version, signal },
      onOutput: (text) => output.append(text),
    });
    const { snapshotId } = await withDeadline(
      `building ${name}@${version}`,
      this.#config.buildTimeoutMs,
      building,
    );
    const finishedAt = new Date().toISOString();
    const ready = { ...advance(record, 'ready'), snapshotId, finishedAt };
    const servable = servableOf(ready)!;
    try {
      ready.snapshotId = (await this.#node.serve(servable)).snapshotId;
      await this.#state.functions.finishVersion(ready, token);
    } catch (error) {
      await this.#retireQuietly(servable);
      throw error;
    }
    return ready;
  }

  #snapshotOf(
    source: VersionSource,
    common: Pick<EndpointRequest, 'name' | 'version' | 'onOutput' | 'signal'>,
  ): Promise<{ snapshotId: string }> {
    if ('fromSnapshot' in source) return this.#node.deployFromSnapshot({ ...common, ...source });
    const { manifest, sha256, path } = source;
    return this.#node.deploy({ ...common, manifest, bundlePath: path, bundleSha256: sha256 });
  }

  async #fail(
    record: VersionRecord,
    token: string,
    cause: unknown,
    output: OutputTail,
  ): Promise<VersionRecord> {
    const { name, version } = record;
    const error = asThawError(cause);
    const failed = {
      ...advance(record, 'failed'),
      finishedAt: new Date().toISOString(),
      error: { code: error.code, detail: error.message, output: output.text },
    };
    this.#log.warn(
      { function: name, version, code: error.code, err: error.code === 'internal' ? cause : undefined },
      'version failed',
    );
    await this.#state.functions.finishVersion(failed, token).catch((reason: Error) => {
      // The lease runs out, and the next deploy or start marks the version as failed.
      this.#log.warn(
        { function: name, version, reason: reason.message },
        'a failed version could not be recorded',
      );
    });
    await this.#prune(name).catch((reason: Error) =>
      this.#log.warn({ reason: reason.message }, 'pruning versions'),
    );
    return failed;
  }

  #keepLease(name: string, token: string, controller: AbortController): NodeJS.Timeout {
    const renew = async () => {
      const kept = await this.#state.functions.extendBuild(name, token, leaseMs).catch(() => true);
      // While Redis is away nobody else can take the lease either; `finishVersion` has the last word.
      if (!kept) controller.abort(new ThawError('conflict', `the build of ${name} lost its lease`));
    };
    return setInterval(renew, leaseRenewalMs).unref();
  }

  /** This build holds the lease, so any other one that looks unfinished has died. */
  async #failAbandoned(current: VersionRecord): Promise<void> {
    for (const record of this.#state.functions.get(current.name)?.versions ?? [])
      if (record.state === 'building' && record.version !== current.version)
        await this.#markAbandoned(record);
  }

  async #markAbandoned(record: VersionRecord): Promise<void> {
    const detail = 'the gateway ended while this version was being built; deploy again';
    await this.#state.functions.putVersion({
      ...advance(record, 'failed'),
      finishedAt: new Date().toISOString(),
      error: { code: 'internal', detail, output: '' },
    });
    this.#log.warn(
      { function: record.name, version: record.version },
      'an interrupted build was marked as failed',
    );
  }

  /** After a switch: older versions give up their warm VMs, and those past the limit are retired. */
  async #settle(name: string): Promise<void> {
    const view = this.#state.functions.get(name);
    if (view === undefined) return;
    for (const record of keptVersions(view, this.#config.keepVersions))
      if (record.version !== view.currentVersion)
        await this.#node.serve(onDemand(servableOf(record)!)).catch((error: Error) => {
          this.#log.warn(
            { function: name, version: record.version, reason: error.message },
            'an older version lost its pool',
          );
        });
    await this.#prune(name).catch((error: Error) =>
      this.#log.warn({ function: name, reason: error.message }, 'pruning versions'),
    );
  }

  async #prune(name: string): Promise<void> {
    const view = this.#state.functions.get(name);
    if (view === undefined) return;
    const kept = new Set(keptVersions(view, this.#config.keepVersions));
    const failures = view.versions.filter((record) => record.state === 'failed').slice(keptFailures);
    const surplus = view.versions.filter((record) => record.state === 'ready' && !kept.has(record));
    for (const record of [...surplus, ...failures]) {
      await this.#state.functions.removeVersion(name, record.version);
      await this.#discard(record);
    }
  }

  async #discard(record: VersionRecord): Promise<void> {
    const servable = servableOf(record);
    if (servable) await this.#retireQuietly(servable);
    await this.#collectBundle(record.bundleSha256);
  }

  async #retireQuietly(version: FunctionVersion): Promise<void> {
    await this.#node.retire(version).catch((error: Error) => {
      this.#log.warn(
        { function: version.name, version: version.version, reason: error.message },
        'retiring failed',
      );
    });
  }

  /** Makes an older ready version serve again. @throws ThawError `function-not-found`. */
  async activate(name: string, version: number): Promise<void> {
    const view = this.#state.functions.get(name);
    const wanted = this.#state.functions.resolve(name, version);
    if (!view || !wanted)
      throw new ThawError('function-not-found', `${name}@${version} is not a ready version`);
    await this.#node.serve(wanted);
    await this.#state.functions.activate(name, version);
    await this.#settle(name);
  }

  /** Changes how the current version is served, without a build. */
  async reconfigure(name: string, change: Partial<VersionRecord['manifest']>): Promise<void> {
    const view = this.#state.functions.get(name);
    const record = view?.versions.find((candidate) => candidate.version === view.currentVersion);
    if (!record) throw new ThawError('function-not-found', `${name} has no version that serves`);
    const manifest = { ...record.manifest, ...change };
    if (manifest.warm.min > manifest.warm.max)
      throw new ThawError('bad-request', 'warm.min: expected a number not above warm.max');
    const changed = { ...record, manifest };
    await this.#state.functions.putVersion(changed);
    await this.#node.serve(servableOf(changed)!);
  }

  /** @returns false when there was no such function. @throws ThawError `conflict` while a build runs. */
  async remove(name: string): Promise<boolean> {
    const view = this.#state.functions.get(name);
    const removed = await this.#state.functions.remove(name);
    for (const record of view?.versions ?? []) await this.#discard(record);
    return removed;
  }

  /** Serves every ready version again. @returns what could not be served, one line each. */
  async resume(onProgress: (done: number, total: number, what: string) => void): Promise<string[]> {
    await this.#removeIncoming();
    const notes: string[] = [];
    const views = this.#state.functions.list();
    const wanted = views.flatMap((view) => this.#servedVersions(view));
    // What serves comes first, older versions after it.
    wanted.sort((a, b) => Number(b.current) - Number(a.current));
    for (const [index, { record, current }] of wanted.entries()) {
      const label = `${record.name}@${record.version}`;
      onProgress(index, wanted.length, label);
      const failure = await this.#serveAgain(record, current);
      if (failure) notes.push(`${label} cannot be served: ${failure}`);
    }
    onProgress(wanted.length, wanted.length, '');
    for (const view of views) void this.#expireBuilds(view.name);
    return notes;
  }

  #servedVersions(view: FunctionView): { record: VersionRecord; current: boolean }[] {
    return keptVersions(view, this.#config.keepVersions).map((record) => ({
      record,
      current: record.version === view.currentVersion,
    }));
  }

  async #serveAgain(record: VersionRecord, current: boolean): Promise<string | undefined> {
    const servable = servableOf(record)!;
    try {
      const { snapshotId } = await this.#node.serve(current ? servable : onDemand(servable));
      if (snapshotId !== record.snapshotId) await this.#state.functions.putVersion({ ...record, snapshotId });
      return undefined;
    } catch (error) {
      const { code, message } = asThawError(error);
      this.#log.error(
        { function: record.name, version: record.version, code, err: error },
        'a version cannot be served',
      );
      return message;
    }
  }

  /** Builds of an earlier run: marked as failed once their lease has run out. */
  async #expireBuilds(name: string): Promise<void> {
    try {
      const stuck =
        this.#state.functions.get(name)?.versions.filter((record) => record.state === 'building') ?? [];
      if (stuck.length === 0) return;
      const leftMs = await this.#state.functions.buildLeaseMs(name);
      if (leftMs === 0) for (const record of stuck) await this.#markAbandoned(record);
      // A live gateway renews the lease; then there is nothing to mark and this looks again.
      else setTimeout(() => void this.#expireBuilds(name), leftMs + 50).unref();
    } catch (error) {
      this.#log.warn({ function: name, reason: (error as Error).message }, 'looking for interrupted builds');
    }
  }

  async #removeIncoming(): Promise<void> {
    const names = await readdir(this.#config.bundleDir).catch(() => [] as string[]);
    for (const name of names.filter((candidate) => candidate.startsWith(incomingPrefix))) {
      await rm(join(this.#config.bundleDir, name), { force: true });
      this.#log.info({ file: name }, 'removed an upload that an earlier run left');
    }
  }

  #pin(sha256: string | null): void {
    if (sha256 === null) return;
    this.#pinned.set(sha256, (this.#pinned.get(sha256) ?? 0) + 1);
  }

  #ended(sha256: string | null): void {
    this.#building--;
    if (sha256 === null) return;
    const left = (this.#pinned.get(sha256) ?? 1) - 1;
    if (left > 0) this.#pinned.set(sha256, left);
    else this.#pinned.delete(sha256);
  }

  /** Deletes a bundle that no servable version and no running deployment needs. */
  async #collectBundle(sha256: string | null): Promise<void> {
    if (sha256 === null) return;
    const needs = (record: VersionRecord) => record.bundleSha256 === sha256 && record.state !== 'failed';
    if (this.#pinned.has(sha256)) return;
    if (this.#state.functions.list().some((view) => view.versions.some(needs))) return;
    await rm(bundlePathOf(this.#config.bundleDir, sha256), { force: true }).catch((error: Error) => {
      this.#log.warn({ sha256, reason: error.message }, 'a bundle could not be deleted');
    });
  }
}

function wantedOf(name: string, source: VersionSource): NewVersion {
  const { manifest } = source;
  if ('fromSnapshot' in source) {
    const { fromSnapshot } = source;
    return { name, manifest, bundleSha256: null, bundleSizeBytes: null, fromSnapshot };
  }
  return { name, manifest, bundleSha256: source.sha256, bundleSizeBytes: source.sizeBytes };
}

/** The current version and the newest other ready ones, up to the limit. */
function keptVersions(view: FunctionView, limit: number): VersionRecord[] {
  const ready = view.versions.filter((record) => record.state === 'ready');
  const current = ready.filter((record) => record.version === view.currentVersion);
  const others = ready.filter((record) => record.version !== view.currentVersion);
  return [...current, ...others.slice(0, Math.max(0, limit - current.length))];
}

/** Servable, but without VMs that wait. */
function onDemand(version: FunctionVersion): FunctionVersion {
  const { warm } = version.manifest;
  return { ...version, manifest: { ...version.manifest, warm: { ...warm, min: 0 } } };
}

class OutputTail {
  text = '';

  append(text: string): void {
    this.text = (this.text + text).slice(-maxOutputChars);
  }
}
