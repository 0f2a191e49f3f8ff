// Owns a VM world whose snapshots lie in a store and whose clones get their memory through a pager.
// Invariant: `page` takes the snapshot's own page file out of reach first: a clone can only have got its pages served.
import { mkdir, readdir, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { capturedFilesIn } from '../../pool/host/paths.ts';
import type { PagerClient } from '../../pool/pagefs/pager-client.ts';
import { endPager, openPager, type PagerProcessOptions } from '../../pool/pagefs/pager-process.ts';
import type { ImageRef } from '../../pool/pagefs/pager-protocol.ts';
import { sparseFileSource } from '../../pool/snapshot/image-source.ts';
import { Publisher } from '../../pool/snapshot/publish.ts';
import { readRecord } from '../../pool/snapshot/record.ts';
import { ClusterKey } from '../../pool/snapshot/signed-object.ts';
import { manifestKey } from '../../pool/snapshot/store-keys.ts';
import type { BlobStore } from '../../pool/store/blob-store.ts';
import { openStore } from '../../pool/store/open-store.ts';
import type { Vm } from '../../pool/vm.ts';
import { LocalVmFactory, type StageTimes } from '../../pool/vm-factory.ts';
import { silentLog } from '../../shared/log.ts';
import { openVmWorld, type VmWorld } from './vm-world.ts';

const keyBytes = Buffer.alloc(32, 9);

export interface PagedWorld extends VmWorld {
  storeDir: string;
  restore(snapshotId: string, stages?: StageTimes): Promise<Vm>;
  pagesPathOf(snapshotId: string): string;
  /** Puts the snapshot's memory into the store. */
  publish(snapshotId: string): Promise<void>;
  /** A new pager, before which an older one ends. Whatever the kernel held of its pages is gone. */
  startPager(): Promise<PagerClient>;
  /** From now on clones of the snapshot map the pager's file. */
  page(
    client: PagerClient,
    snapshotId: string,
    options?: { record?: boolean; keepPath?: string },
  ): Promise<ImageRef>;
}

export async function openPagedWorld(): Promise<PagedWorld> {
  const world = await openVmWorld();
  const storeDir = join(world.dataDir, 'store');
  await mkdir(storeDir);
  const store = await openStore(`file://${storeDir}`);
  const options: PagerProcessOptions = {
    dir: world.paths.pagerDir,
    mountDir: world.paths.pagefsDir,
    program: join(import.meta.dirname, '../../services/pager/main.ts'),
    settings: { storeUrl: `file://${storeDir}`, clusterKey: keyBytes.toString('hex') },
    log: silentLog,
  };
  // Far pages come one by one when nobody knows which are needed: a restore may take long here.
  const slow = { handshakeTimeoutMs: 120_000, primeTimeoutMs: 120_000 };
  const factory = new LocalVmFactory({ ...world, ...slow, log: silentLog });
  const vms: Vm[] = [];
  let client: PagerClient | undefined;
  const manifestPathOf = (snapshotId: string) => join(world.dataDir, `${snapshotId}.manifest`);
  const pagesPathOf = (snapshotId: string) => join(world.dataDir, `${snapshotId}.pages`);
  const paged: PagedWorld = {
    ...world,
    factory,
    storeDir,
    pagesPathOf,
    async restore(snapshotId, stages) {
      const vm = await factory.restore(snapshotId, AbortSignal.timeout(240_000), stages);
      vms.push(vm);
      return vm;
    },
    publish: (snapshotId) => publish(world, store, snapshotId, manifestPathOf(snapshotId)),
    async startPager() {
      client?.close();
      await endPager(options);
      client = (await openPager(options)).client;
      return client;
    },
    async page(pager, snapshotId, { record = false, keepPath } = {}) {
      const ref: ImageRef = { snapshotId, image: 'memory' };
      const from = { manifestPath: manifestPathOf(snapshotId), ...(keepPath ? { keepPath } : {}) };
      const served = await pager.add(ref, from, { record });
      const { pagesPath } = capturedFilesIn(world.paths.snapshotDir(snapshotId));
      if ((await stat(pagesPathOf(snapshotId)).catch(() => undefined)) === undefined)
        await rename(pagesPath, pagesPathOf(snapshotId));
      await rm(pagesPath, { force: true });
      await symlink(served, pagesPath);
      return ref;
    },
    async close() {
      client?.close();
      await Promise.all(vms.map((vm) => vm.destroy()));
      await endPager(options);
      await store.close();
      await world.close();
    },
  };
  return paged;
}

async function publish(
  world: VmWorld,
  store: BlobStore,
  snapshotId: string,
  manifestPath: string,
): Promise<void> {
  const clusterKey = new ClusterKey(keyBytes);
  const publisher = await Publisher.open({ store, clusterKey, spoolDir: join(world.dataDir, 'spool') });
  try {
    const record = (await readRecord(world.paths.snapshotDir(snapshotId)))!;
    const { pagesPath, devicesPath } = capturedFilesIn(record.dir);
    await publisher.publish({
      ...record,
      source: record.source,
      createdAtMs: Date.parse(record.createdAt),
      memory: {
        sizeBytes: record.memoryMb * 1024 * 1024,
        sources: [await sparseFileSource(pagesPath)],
      },
      // Disks stay local in these tests.
      disk: { sizeBytes: 4096, sources: [] },
      devicesPath,
    });
    await writeFile(manifestPath, await store.get(manifestKey(snapshotId)));
  } finally {
    await publisher.close();
  }
}

/** Where a directory store keeps its segments. */
export async function segmentFiles(storeDir: string): Promise<string[]> {
  const entries = await readdir(join(storeDir, 'objects', 'segments'), {
    recursive: true,
    withFileTypes: true,
  });
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
}
