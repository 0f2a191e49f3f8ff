// Owns how snapshots come to be: a template by booting once, a function version by working in a copy of a template.
// Refuses to own restores for use (vm-factory.ts). Invariant: a snapshot directory appears under its final name only
// when it is whole; everything before lives under '.partial' and is thrown away.
import { createHash } from 'node:crypto';
import { access, link, mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { Cleanup } from '../shared/cleanup.ts';
import { ThawError } from '../shared/errors.ts';
import type { ResolvedManifest } from '../shared/function-manifest.ts';
import { newSnapshotId, newVmId, snapshotIdOf } from '../shared/ids.ts';
import type { Log } from '../shared/log.ts';
import { metrics } from '../shared/metrics.ts';
import { AgentClient } from './guest/agent-client.ts';
import { ControlClient } from './guest/control-client.ts';
import { type GuestIdentity, handshake } from './guest/handshake.ts';
import { connectionsTo, prime } from './guest/runner-client.ts';
import { newNonce, seal } from './guest/seal.ts';
import { capturedFilesIn, cloneFilesDir, type Paths, snapshotFilesIn } from './host/paths.ts';
import { mergeLayers } from './hypervisor/disk-layer/layers.ts';
import type {
  Compatibility,
  GuestImage,
  Hypervisor,
  Machine,
  MachineShape,
} from './hypervisor/hypervisor.ts';
import { isDiskLayer } from './snapshot/disk-form.ts';
import type { SnapshotLibrary } from './snapshot/library.ts';
import { copySparse } from './snapshot/materialise.ts';
import {
  differences,
  ownBytes,
  publishDirectory,
  readRecord,
  recordFormat,
  type SnapshotRecord,
  writeRecord,
} from './snapshot/record.ts';
import type { FunctionBuildRequest, SnapshotBuilder } from './vm.ts';

export interface SnapshotBuilderOptions {
  hypervisor: Hypervisor;
  image: GuestImage;
  paths: Paths;
  log: Log;
  /** Templates that others have made come through it; without one all are made here. */
  library?: SnapshotLibrary;
  bootTimeoutMs?: number;
  startTimeoutMs?: number;
  /** False: files that the guest's kernel had read stay in the snapshot. To measure what that is worth. */
  dropCaches?: boolean;
}

/** A first request and one after it: they run different code. More have V8 begin to optimise, and clones go on with that. */
const primings = 2;

/** A machine with its memory in `partialDir`, ready to become a snapshot. */
interface CaptureWork {
  snapshotId: string;
  shape: MachineShape;
  machine: Machine;
  control: ControlClient;
  partialDir: string;
  /** Absent for a template. */
  of?: { template: SnapshotRecord; templateDiskPath: string; prime: string[] };
}

export class LocalSnapshotBuilder implements SnapshotBuilder {
  readonly #options: SnapshotBuilderOptions;
  readonly #building = new Map<string, Promise<string>>();

  constructor(options: SnapshotBuilderOptions) {
    this.#options = options;
  }

  async ensureTemplate(shape: MachineShape, onProgress: (step: string) => void = () => {}): Promise<string> {
    const compatibility = await this.#options.hypervisor.compatibility(this.#options.image);
    const inputs = JSON.stringify([recordFormat, 'base', compatibility, shape.memoryMb, shape.vcpus]);
    const snapshotId = snapshotIdOf(createHash('sha256').update(inputs).digest('hex'));
    if (await this.has(snapshotId)) return snapshotId;
    const running = this.#building.get(snapshotId);
    if (running) return running;
    const building = this.#makeTemplate(snapshotId, shape, onProgress).finally(() =>
      this.#building.delete(snapshotId),
    );
    this.#building.set(snapshotId, building);
    return building;
  }

  async has(snapshotId: string): Promise<boolean> {
    const record = await readRecord(this.#options.paths.snapshotDir(snapshotId));
    if (!record) return false;
    const ours = await this.#options.hypervisor.compatibility(this.#options.image);
    return differences(record.compatibility, ours) === '' && (await exists(memoryPathOf(record)));
  }

  remove(snapshotId: string): Promise<void> {
    return rm(this.#options.paths.snapshotDir(snapshotId), { recursive: true, force: true });
  }

  async #makeTemplate(
    snapshotId: string,
    shape: MachineShape,
    onProgress: (step: string) => void,
  ): Promise<string> {
    const { library, log } = this.#options;
    try {
      await library?.record(snapshotId);
      if (await this.has(snapshotId)) return snapshotId;
    } catch (error) {
      if (!(error instanceof ThawError) || error.code !== 'template-not-found')
        log.warn({ err: error, snapshotId }, 'the template does not come from the store: it is booted');
    }
    await this.#bootTemplate(snapshotId, shape, onProgress);
    library?.added(await library.record(snapshotId));
    return snapshotId;
  }

  async #bootTemplate(
    snapshotId: string,
    shape: MachineShape,
    onProgress: (step: string) => void,
  ): Promise<string> {
    const { hypervisor, image, bootTimeoutMs = 120_000 } = this.#options;
    await using undo = new Cleanup();
    const { vmId, runDir, partialDir } = await this.#workspace(snapshotId, undo);
    const { pagesPath } = capturedFilesIn(partialDir);
    onProgress(`booting a ${shape.memoryMb} MB guest`);
    const machine = await hypervisor.boot({ vmId, shape, image, runDir, pagesPath });
    undo.defer('machine', () => machine.destroy());
    const control = new ControlClient(await machine.openControl());
    const booted = handshake(control, vmId, '', bootTimeoutMs);
    const identity = await Promise.race([booted, endOf(machine, 'the guest ended while it booted')]);
    await prime(await machine.addressOf(identity.ports.agent), ['/health'], 30_000);
    onProgress('capturing the template');
    // `await`: without it the undo stack would run while the capture is under way.
    return await this.#capture({ snapshotId, shape, machine, control, partialDir });
  }

  async buildFunction(request: FunctionBuildRequest, signal: AbortSignal): Promise<string> {
    const { manifest } = request;
    const shape = { memoryMb: manifest.memoryMb, vcpus: manifest.vcpus };
    const templateId = await this.ensureTemplate(shape);
    // Its page file is copied, its disk merged: all of it must be here, and stay.
    using _held = this.#options.library?.use.hold(templateId);
    await this.#options.library?.materialise(templateId);
    const template = await readRecord(this.#options.paths.snapshotDir(templateId));
    if (!template) throw new ThawError('template-not-found', `the template ${templateId} vanished`);
    const from = capturedFilesIn(template.dir);
    const snapshotId = newSnapshotId();
    await using undo = new Cleanup();
    const { vmId, runDir, partialDir } = await this.#workspace(snapshotId, undo);
    // The one copy of memory in Thaw: at deploy, so that the version's page file is written in place by its own VM.
    const { pagesPath } = capturedFilesIn(partialDir);
    await copySparse(from.pagesPath, pagesPath);
    const { hypervisor, image } = this.#options;
    const diskPath = await linkedDisk(from.diskPath, runDir);
    const machine = await hypervisor.restore(
      { vmId, shape, image, runDir, from: { ...from, pagesPath, diskPath }, memory: 'shared' },
      signal,
    );
    undo.defer('machine', () => machine.destroy());
    const control = new ControlClient(await machine.openControl());
    const identity = await handshake(control, vmId, template.nonce, 30_000);
    await Promise.race([
      this.#install(machine, identity, request, signal),
      endOf(machine, 'the VM ended while the function was built'),
    ]);
    // `await`: without it the undo stack would run while the capture is under way.
    const of = { template, templateDiskPath: diskPath, prime: [...manifest.prime] };
    return await this.#capture({ snapshotId, shape, machine, control, partialDir, of });
  }

  async #install(
    machine: Machine,
    identity: GuestIdentity,
    request: FunctionBuildRequest,
    signal: AbortSignal,
  ): Promise<void> {
    const { manifest } = request;
    const agent = new AgentClient(await machine.addressOf(identity.ports.agent), identity.secret);
    let port: number;
    try {
      await agent.putBundle(request.bundlePath, signal);
      port = await agent.startRunner(
        runnerSpecOf(manifest, this.#options.startTimeoutMs ?? 120_000),
        signal,
        request.onOutput,
      );
    } finally {
      await agent.close();
    }
    const runner = await machine.addressOf(port);
    // Kept and used again, as clones do it: what that takes the program compiles here, and not in each of them.
    const connections = connectionsTo(runner);
    try {
      for (let time = 0; time < primings; time++)
        await prime(runner, manifest.prime, manifest.timeoutMs, signal, connections);
    } catch (error) {
      throw new ThawError('start-failed', `a prime path failed: ${(error as Error).message}`, {
        cause: error,
      });
    } finally {
      await connections.destroy();
    }
  }

  async #capture(work: CaptureWork): Promise<string> {
    const { snapshotId, shape, machine, control, partialDir, of } = work;
    const { hypervisor, image, paths, dropCaches = true } = this.#options;
    const nonce = newNonce();
    const onStage = (stage: string, elapsedMs: number) =>
      metrics.snapshotStage.observe({ stage }, elapsedMs / 1000);
    const sealStartMs = performance.now();
    await seal(control, { nonce, dropCaches, wasBooted: !of });
    onStage('seal', performance.now() - sealStartMs);
    const files = capturedFilesIn(partialDir);
    await machine.captureInPlace(files, onStage);
    await sync(files.pagesPath);
    if (of) await standAlone(of.template.compatibility, files.diskPath, of.templateDiskPath);
    const dir = paths.snapshotDir(snapshotId);
    await writeRecord(partialDir, {
      format: recordFormat,
      snapshotId,
      kind: of ? 'function' : 'template',
      names: [],
      ...(of ? { parent: of.template.snapshotId, prime: of.prime } : {}),
      depth: of ? of.template.depth + 1 : 0,
      form: 'whole',
      dir,
      nonce,
      ...shape,
      compatibility: await hypervisor.compatibility(image),
      createdAt: new Date().toISOString(),
      sizeBytes: await ownBytes(partialDir, []),
    });
    await rm(dir, { recursive: true, force: true });
    await publishDirectory(partialDir, dir);
    return snapshotId;
  }

  async #workspace(snapshotId: string, undo: Cleanup) {
    const { paths } = this.#options;
    const vmId = newVmId();
    const runDir = paths.vmDir(vmId);
    const partialDir = `${paths.snapshotDir(snapshotId)}.partial`;
    undo.defer('run directory', () => rm(runDir, { recursive: true, force: true }));
    undo.defer('partial snapshot', () => rm(partialDir, { recursive: true, force: true }));
    await rm(partialDir, { recursive: true, force: true });
    await mkdir(partialDir, { recursive: true, mode: 0o700 });
    await mkdir(runDir, { recursive: true, mode: 0o700 });
    return { vmId, runDir, partialDir };
  }
}

const runnerSpecOf = (manifest: ResolvedManifest, startTimeoutMs: number) => ({
  runtime: manifest.runtime,
  ...(manifest.entry ? { entry: manifest.entry } : {}),
  ...(manifest.command ? { command: manifest.command } : {}),
  ...(manifest.build ? { build: manifest.build } : {}),
  ...(manifest.port ? { port: manifest.port } : {}),
  env: manifest.env,
  startTimeoutMs,
});

async function endOf(machine: Machine, what: string): Promise<never> {
  const exit = await machine.exited;
  throw new ThawError(
    'hypervisor-failed',
    `${what}: ${exit.signal ?? exit.exitCode}; ${exit.stderrTail.trim()}`,
  );
}

function memoryPathOf({ dir, form }: SnapshotRecord): string {
  const files = snapshotFilesIn(dir);
  return { whole: files.pagesPath, delta: files.basePagesPath, paged: files.manifestPath }[form];
}

/** A layer over a template's disk becomes one over the empty disk: the template may be removed. */
async function standAlone(
  compatibility: Compatibility,
  diskPath: string,
  templateDiskPath: string,
): Promise<void> {
  if (!(await isFile(diskPath))) return;
  for (const path of [diskPath, templateDiskPath]) if (!(await isDiskLayer(compatibility, path))) return;
  const wholePath = `${diskPath}.whole`;
  await mergeLayers(wholePath, templateDiskPath, diskPath);
  await rename(wholePath, diskPath);
}

/** A name of our own for the template's disk: the template may be removed meanwhile. */
async function linkedDisk(path: string, runDir: string): Promise<string> {
  if (!(await isFile(path))) return path;
  const dir = cloneFilesDir(runDir);
  await mkdir(dir, { mode: 0o700 });
  const { diskPath } = capturedFilesIn(dir);
  await link(path, diskPath);
  return diskPath;
}

const isFile = async (path: string): Promise<boolean> => (await stat(path)).isFile();

async function sync(path: string): Promise<void> {
  await using file = await open(path, 'r+');
  await file.sync();
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
