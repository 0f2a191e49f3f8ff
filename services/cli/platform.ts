// Owns putting a whole Thaw together in one process, in order, and taking it apart in the reverse order.
// Refuses to own any part's work. Invariant: what was started is ended, whatever step fails; nothing answers before it
// can serve.
import { once } from 'node:events';
import { mkdir, readFile, stat, statfs, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { availableParallelism, totalmem } from 'node:os';
import type { FastifyInstance } from 'fastify';
import { Capacity } from '../../pool/capacity.ts';
import { type Paths, pathsOf } from '../../pool/host/paths.ts';
import { type Reclaimed, reclaim } from '../../pool/host/reclaim.ts';
import type { GuestImage } from '../../pool/hypervisor/hypervisor.ts';
import { Pool } from '../../pool/pool.ts';
import type { Eviction } from '../../pool/snapshot/eviction.ts';
import { SnapshotLibrary } from '../../pool/snapshot/library.ts';
import { LocalSnapshotBuilder } from '../../pool/snapshot-builder.ts';
import { LocalVmFactory } from '../../pool/vm-factory.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import type { Config, ResolvedConfig } from '../../shared/config.ts';
import { ThawError } from '../../shared/errors.ts';
import { apiKeyPattern, newApiKey } from '../../shared/ids.ts';
import { createLog, type Log } from '../../shared/log.ts';
import { startDefaultMetrics } from '../../shared/metrics.ts';
import { buildAdminApp } from '../gateway/admin-app.ts';
import { buildGateway } from '../gateway/app.ts';
import { bundlePathOf } from '../gateway/bundle.ts';
import { connectState } from '../gateway/state/redis-state.ts';
import type { StateStore } from '../gateway/state/state-store.ts';
import { readTlsPair, TlsDoor } from '../gateway/tls-door.ts';
import { LocalNode } from '../node/local-node.ts';
import { urlHost } from './api-client.ts';
import { type ChosenMachine, chooseMachine } from './choose-machine.ts';
import { lockDataDir } from './data-dir-lock.ts';
import { evictionOf } from './disk-room.ts';
import { endOldPager, joinStore, type NodeStore } from './node-store.ts';
import { startPrivateRedis } from './private-redis.ts';
import { type Progress, withStep } from './progress.ts';
import { thawVersion } from './version.ts';

export interface Platform {
  url: string;
  /** Where there is a certificate. */
  tlsUrl?: string;
  adminUrl: string;
  apiKeyPath: string;
  hypervisor: string;
  /** Drains, then ends everything that was started. @returns what could not be ended, one line each. */
  close(): Promise<string[]>;
}

const maxWaiters = 1_024;

/**
 * @param signal gives the start up, wherever it is: this rejects with its reason when nothing of it runs any more, but
 * for work of this process whose outcome nobody wants.
 * @throws ThawError with what to do about it; then nothing of it runs.
 */
export async function startPlatform(
  resolved: ResolvedConfig,
  progress: Progress,
  signal: AbortSignal,
): Promise<Platform> {
  const undo = new Cleanup();
  const givenUp = once(signal, 'abort').then(() => Promise.reject(signal.reason));
  const starting = start(resolved.config, progress, undo, signal);
  for (const outcome of [givenUp, starting]) outcome.catch(() => {});
  try {
    return await Promise.race([starting, givenUp]);
  } catch (error) {
    await undo.run();
    throw error;
  }
}

async function start(
  config: Config,
  progress: Progress,
  undo: Cleanup,
  signal: AbortSignal,
): Promise<Platform> {
  const paths = pathsOf(config.dataDir);
  await mkdir(paths.dataDir, { recursive: true, mode: 0o700 });
  await requireFreeDisk(config);
  const lock = await lockDataDir(paths.lock);
  undo.defer('the lock of the data directory', () => lock.release());
  await requirePorts(config);
  await requireTlsPair(config);
  const log = createLog({ level: config.logLevel, path: paths.log });
  startDefaultMetrics();
  const reclaimed = await reclaim({ paths, log });
  for (const pid of await endOldPager(paths)) reclaimed.push({ kind: 'process', what: `pager, pid ${pid}` });
  // A start that is given up has a VMM under way that only its record names.
  undo.defer('VMs under way', async () => void (signal.aborted && (await reclaim({ paths, log }))));
  if (reclaimed.length > 0) progress.note(`! cleaned up after an earlier run: ${summaryOf(reclaimed)}`);
  const apiKey = await apiKeyOf(config, paths);
  const machine = await chooseMachine(config, paths, log, progress);
  undo.defer('hypervisor', () => machine.close());
  const state = await openState(config, paths, log, progress, undo);
  await state.keys.add(apiKey);
  const { node, nodeStore, eviction } = await createNode(config, paths, log, machine, undo, () =>
    gateway.gateway.dropOldUploads(),
  );
  undo.defer('VMs', () => node.drain(config.drainTimeoutMs));
  await withStep(progress, 'base template', (step) => node.start((text) => step.update(text)));
  const { gateway, admin } = createApps(config, paths, log, node, state, nodeStore);
  const tlsDoor = await openTlsDoor(config, gateway, log);
  undo.defer('gateway', () => gateway.close());
  undo.defer('admin port', () => admin.close());
  await withStep(progress, 'deployed functions', (step) =>
    gateway.gateway.resume((done, total, what) => step.update(`${done} of ${total} ${what}`)),
  );
  eviction.start();
  undo.defer('eviction', () => eviction.close());
  const url = await listen(gateway, config.host, config.port, 'THAW_PORT');
  const tlsUrl = tlsDoor && (await listenTls(tlsDoor, config));
  const adminUrl = await listen(admin, '127.0.0.1', config.adminPort, 'THAW_ADMIN_PORT');
  lock.publish({ url, adminUrl });
  log.info({ url, tlsUrl, adminUrl, hypervisor: machine.about, version: thawVersion }, 'thaw is up');
  return {
    url,
    ...(tlsUrl ? { tlsUrl } : {}),
    adminUrl,
    apiKeyPath: paths.apiKey,
    hypervisor: machine.about,
    async close() {
      const failures = await undo.run();
      return failures.map(({ label, error }) => `${label}: ${(error as Error).message}`);
    },
  };
}

async function openState(
  config: Config,
  paths: Paths,
  log: Log,
  progress: Progress,
  undo: Cleanup,
): Promise<StateStore> {
  if (config.redisUrl === undefined) {
    const redis = await withStep(progress, 'Redis', () => startPrivateRedis(paths, log));
    undo.defer('Redis', () => redis.stop());
  }
  const address =
    config.redisUrl === undefined ? { socketPath: paths.redisSocket } : { url: config.redisUrl };
  const state = await connectState(address, log);
  undo.defer('state', () => state.close());
  return state;
}

async function createNode(
  config: Config,
  paths: Paths,
  log: Log,
  machine: ChosenMachine,
  undo: Cleanup,
  dropUploads: () => Promise<number>,
): Promise<{ node: LocalNode; nodeStore: NodeStore | undefined; eviction: Eviction }> {
  const { hypervisor, image, about } = machine;
  const library = new SnapshotLibrary({ paths, log });
  const parts = { hypervisor, image, paths, log, library };
  const factory = new LocalVmFactory(parts);
  // Memory that nobody captures is of no use to others.
  const { capturesMemory } = hypervisor.capabilities;
  const nodeStore = capturesMemory ? await joinStore({ config, paths, log, image, factory }) : undefined;
  if (nodeStore) undo.defer('store', () => nodeStore.close());
  const notes = [...machine.notes, ...(nodeStore?.notes ?? [])];
  const pool = new Pool({
    factory,
    log,
    capacity: new Capacity({ memoryMb: config.maxMemoryMb ?? halfOfMemoryMb(), vms: config.maxVms }),
    maxConcurrentRestores: config.maxConcurrentRestores ?? Math.max(2, availableParallelism()),
    maxWaiters,
    onVmEvent: (vm, event) => node.onVmEvent(vm, event),
  });
  const inUse = () => node.snapshotsInUse();
  const { stored } = nodeStore ?? {};
  const eviction = evictionOf({ config, paths, log, library, stored, inUse, dropUploads });
  const node = new LocalNode({
    pool,
    log,
    builder: new LocalSnapshotBuilder(parts),
    loadSnapshot: (snapshotId) => factory.load(snapshotId),
    forgetSnapshot: (snapshotId) => factory.forget(snapshotId),
    bundlePath: (sha256) => bundlePathOf(paths.bundlesDir, sha256),
    library,
    stored,
    hypervisor: about,
    egress: hypervisor.capabilities.egress,
    notes,
    currentNotes: () => (eviction.note === undefined ? [] : [eviction.note]),
    baseShape: { memoryMb: config.baseMemoryMb, vcpus: 1 },
    basePolicy: { min: config.baseWarm, max: config.maxVms, recycle: 'fresh', concurrency: 1 },
    diskSizeMb: await diskSizeMbOf(image),
  });
  return { node, nodeStore, eviction };
}

function createApps(
  config: Config,
  paths: Paths,
  log: Log,
  node: LocalNode,
  state: StateStore,
  nodeStore: NodeStore | undefined,
) {
  const { maxBundleBytes, drainTimeoutMs, trustForwarded, domain = null } = config;
  const gatewayConfig = {
    bundleDir: paths.bundlesDir,
    maxBundleBytes,
    drainTimeoutMs,
    trustForwarded,
    domain,
  };
  const gateway = buildGateway({ node, state, log, version: thawVersion, config: gatewayConfig });
  const otherMetrics = async () => (await nodeStore?.paged?.metrics()) ?? [];
  const admin = buildAdminApp({ gateway: gateway.gateway, version: thawVersion, otherMetrics });
  return { gateway, admin };
}

/** Asked before the long work, too. @throws ThawError `bad-config` for a certificate or key that cannot be used. */
async function requireTlsPair({ tlsCert: certPath, tlsKey: keyPath }: Config): Promise<void> {
  if (certPath !== undefined && keyPath !== undefined) await readTlsPair({ certPath, keyPath });
}

async function openTlsDoor(config: Config, app: FastifyInstance, log: Log): Promise<TlsDoor | undefined> {
  const { tlsCert: certPath, tlsKey: keyPath } = config;
  if (certPath === undefined || keyPath === undefined) return undefined;
  return await TlsDoor.open(app, { certPath, keyPath, log });
}

async function listenTls(door: TlsDoor, { host, tlsPort, domain }: Config): Promise<string> {
  const port = await door.listen(host, tlsPort).catch((error: Error) => {
    throw listenError(error, host, tlsPort, 'THAW_TLS_PORT');
  });
  return `https://${domain?.split(':')[0] ?? urlHost(host)}:${port}`;
}

/** @throws ThawError `no-space`. */
async function requireFreeDisk({ dataDir, minFreeDiskMb }: Config): Promise<void> {
  const { bavail, bsize } = await statfs(dataDir);
  const freeMb = Math.floor((bavail * bsize) / 1024 ** 2);
  if (freeMb < minFreeDiskMb)
    throw new ThawError('no-space', `${dataDir} has ${freeMb} MB free; Thaw needs ${minFreeDiskMb} MB`);
}

/** Asked before the long work, so that a taken port is not found out after it. @throws ThawError `port-in-use`. */
async function requirePorts({ host, port, adminPort, tlsCert, tlsPort }: Config): Promise<void> {
  for (const [address, number, name] of [
    [host, port, 'THAW_PORT'],
    ['127.0.0.1', adminPort, 'THAW_ADMIN_PORT'],
    ...(tlsCert === undefined ? [] : [[host, tlsPort, 'THAW_TLS_PORT'] as const]),
  ] as const) {
    const probe = createServer();
    await new Promise<void>((resolve, reject) => {
      probe.once('error', (error) => reject(listenError(error, address, number, name)));
      probe.listen(number, address, () => probe.close(() => resolve()));
    });
  }
}

async function listen(app: FastifyInstance, host: string, port: number, name: string): Promise<string> {
  try {
    await app.listen({ host, port });
  } catch (error) {
    throw listenError(error as Error, host, port, name);
  }
  return `http://${urlHost(host)}:${(app.server.address() as AddressInfo).port}`;
}

function listenError(error: NodeJS.ErrnoException, host: string, port: number, name: string): Error {
  const reasons: Record<string, string> = {
    EADDRINUSE: `port ${port} on ${host} is taken; choose another one with ${name}`,
    EACCES: `port ${port} needs more rights than this user has; choose one above 1023 with ${name}`,
    EADDRNOTAVAIL: `${host} is no address of this machine; see THAW_HOST`,
  };
  const reason = reasons[error.code ?? ''];
  return reason === undefined ? error : new ThawError('port-in-use', reason, { cause: error });
}

/** The configured key, else the one in the data directory, made at the first start. */
async function apiKeyOf(config: Config, paths: Paths): Promise<string> {
  if (config.apiKey !== undefined) return config.apiKey;
  const known = await readFile(paths.apiKey, 'utf8').catch(() => '');
  if (apiKeyPattern.test(known.trim())) return known.trim();
  const apiKey = newApiKey();
  await writeFile(paths.apiKey, `${apiKey}\n`, { mode: 0o600 });
  return apiKey;
}

function summaryOf(reclaimed: Reclaimed[]): string {
  const counts = new Map<string, number>();
  for (const { kind } of reclaimed) counts.set(kind, (counts.get(kind) ?? 0) + 1);
  return [...counts].map(([kind, count]) => `${count} × ${kind}`).join(', ');
}

const halfOfMemoryMb = (): number => Math.floor(totalmem() / 2 / 1024 ** 2);

async function diskSizeMbOf(image: GuestImage): Promise<number> {
  const facts = await stat(image.blankDiskPath).catch(() => undefined);
  return facts ? Math.round(facts.size / 1024 ** 2) : 0;
}
