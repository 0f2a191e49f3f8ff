// Owns joining a node to the store that configuration names: the store itself, the cluster key, the pager, what is
// published and what comes back. Refuses to own any part's work. Invariant: without THAW_STORE nothing of it runs; with
// one that does not answer the node starts all the same and says so.

import { randomBytes } from 'node:crypto';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Paths, snapshotFilesIn } from '../../pool/host/paths.ts';
import type { GuestImage } from '../../pool/hypervisor/hypervisor.ts';
import { canMountFuse } from '../../pool/pagefs/fuse-mount.ts';
import { PagedMemory } from '../../pool/pagefs/paged-memory.ts';
import { endPager, openPager } from '../../pool/pagefs/pager-process.ts';
import { ClusterKey } from '../../pool/snapshot/signed-object.ts';
import { manifestsPrefix } from '../../pool/snapshot/store-keys.ts';
import { StoredSnapshots } from '../../pool/snapshot/stored-snapshots.ts';
import type { BlobStore } from '../../pool/store/blob-store.ts';
import { openStore } from '../../pool/store/open-store.ts';
import type { LocalVmFactory } from '../../pool/vm-factory.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import type { Config } from '../../shared/config.ts';
import { withDeadline } from '../../shared/deadline.ts';
import { ThawError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { metrics } from '../../shared/metrics.ts';

export interface NodeStore {
  stored: StoredSnapshots;
  paged: PagedMemory | undefined;
  /** What is slower than it could be, or does not answer. */
  notes: string[];
  /** After the node's VMs have ended. */
  close(): Promise<void>;
}

export interface JoinOptions {
  config: Config;
  paths: Paths;
  log: Log;
  image: GuestImage;
  factory: LocalVmFactory;
}

const clusterKeyPattern = /^[0-9a-f]{64}$/;
const pagerProgram = join(import.meta.dirname, '../pager/main.ts');
const probeTimeoutMs = 5_000;
/** One restore of a VM of which nothing is far away. */
const rehearsalTimeoutMs = 120_000;

/** What an earlier run's pager served died with its VMs. @returns its pids. */
export async function endOldPager(paths: Paths): Promise<number[]> {
  const pids = await endPager({ dir: paths.pagerDir, mountDir: paths.pagefsDir });
  await rm(paths.keptDir, { recursive: true, force: true });
  return pids;
}

/** @returns undefined when no store is configured. @throws ThawError `bad-config` | `store-refused`. */
export async function joinStore(options: JoinOptions): Promise<NodeStore | undefined> {
  const { config, paths, log, image, factory } = options;
  if (config.store === undefined) return undefined;
  await using undo = new Cleanup();
  const { s3Endpoint } = config;
  const store = await openStore(config.store, s3Endpoint === undefined ? {} : { s3Endpoint });
  undo.defer('store', () => store.close());
  const notes = await probe(store);
  const secret = await clusterKeyOf(config, paths);
  const ability = await canMountFuse();
  if (!ability.ok) notes.push(`snapshots are fetched whole before they are restored: ${ability.reason}`);
  const paged = ability.ok ? pagedMemoryOf(options, secret, () => stored) : undefined;
  const stored: StoredSnapshots = await StoredSnapshots.open({
    store,
    clusterKey: new ClusterKey(Buffer.from(secret, 'hex')),
    library: factory.library,
    paths,
    log,
    blankDiskPath: image.blankDiskPath,
    paged,
    compatibility: () => factory.compatibility(),
    ...(paged && {
      rehearse: (record, far, signal) =>
        paged.recordPlain(
          record.snapshotId,
          { plainPath: snapshotFilesIn(record.dir).pagesPath, far },
          (path) =>
            factory.rehearse(
              record.snapshotId,
              path,
              AbortSignal.any([signal, AbortSignal.timeout(rehearsalTimeoutMs)]),
            ),
        ),
    }),
  });
  factory.library.connect(stored, paged);
  await paged?.start();
  stored.start();
  undo.disarm();
  return { stored, paged, notes, close: () => leave(stored, paged, config.drainTimeoutMs) };
}

/** A store that does not answer may be back any moment; one that refuses never will. @throws ThawError `store-refused`. */
async function probe(store: BlobStore): Promise<string[]> {
  try {
    await store.list(manifestsPrefix, { timeoutMs: probeTimeoutMs });
    return [];
  } catch (error) {
    if (!(error instanceof ThawError) || error.code === 'store-refused') throw error;
    return [`the store did not answer at the start: ${error.message}`];
  }
}

/** The configured key, else the one in the data directory, made when there is none. */
async function clusterKeyOf(config: Config, paths: Paths): Promise<string> {
  if (config.clusterKey !== undefined) return config.clusterKey;
  const known = (await readFile(paths.clusterKey, 'utf8').catch(() => '')).trim();
  if (clusterKeyPattern.test(known)) return known;
  const made = randomBytes(32).toString('hex');
  await writeFile(paths.clusterKey, `${made}\n`, { mode: 0o600 });
  return made;
}

function pagedMemoryOf(
  { config, paths, log, factory }: JoinOptions,
  clusterKey: string,
  stored: () => StoredSnapshots,
): PagedMemory {
  const { store: storeUrl, s3Endpoint } = config;
  const settings = { storeUrl, clusterKey, ...(s3Endpoint === undefined ? {} : { s3Endpoint }) };
  const { pagerDir: dir, pagefsDir: mountDir, keptDir } = paths;
  return new PagedMemory({
    openPager: async () => (await openPager({ dir, mountDir, program: pagerProgram, settings, log })).client,
    endPager: () => endPager({ dir, mountDir }),
    keptDir,
    log,
    workingSetOf: (image) => stored().workingSetOf(image),
    onRecorded: (image, recording) => stored().learnt(image, [recording]),
    onMissed: (image, misses) => stored().missed(image, misses),
    async onKept({ snapshotId }, keptPath) {
      await factory.library.becomeWhole(snapshotId, keptPath);
      await stored().unpin(snapshotId);
    },
    onLost: () => metrics.fallbacks.inc({ kind: 'pager-restarted' }),
  });
}

/** What waits to be published is, unless the store fails or it takes too long: then the next start does it. */
async function leave(
  stored: StoredSnapshots,
  paged: PagedMemory | undefined,
  timeoutMs: number,
): Promise<void> {
  if (!stored.backlog.failing)
    await withDeadline('publishing what waits', timeoutMs, stored.settled()).catch(() => {});
  await paged?.close();
  await stored.close();
}
