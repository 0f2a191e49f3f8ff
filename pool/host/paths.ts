// Owns every path under the data directory: no other file joins one.
// Invariant: ids in paths have passed their pattern; socket paths stay under the 107 bytes Linux allows.
import { join } from 'node:path';
import { ThawError } from '../../shared/errors.ts';
import { snapshotIdPattern, vmIdPattern } from '../../shared/ids.ts';
import type { CapturedFiles } from '../hypervisor/hypervisor.ts';

export interface Paths {
  readonly dataDir: string;
  readonly lock: string;
  readonly apiKey: string;
  readonly redisDir: string;
  readonly redisSocket: string;
  readonly snapshotsDir: string;
  readonly vmsDir: string;
  readonly bundlesDir: string;
  /** Record, socket and log of the pager. */
  readonly pagerDir: string;
  /** Plain page files that the pager makes of what it serves. */
  readonly keptDir: string;
  /** Segments on their way to the store. */
  readonly spoolDir: string;
  readonly clusterKey: string;
  /** Where the page file system is mounted. */
  readonly pagefsDir: string;
  readonly hypervisorChoice: string;
  readonly networkDir: string;
  readonly jailDir: string;
  readonly log: string;
  vmDir(vmId: string): string;
  snapshotDir(snapshotId: string): string;
  bundle(sha256: string): string;
}

export function pathsOf(dataDir: string): Paths {
  // 'vms/vm-xxxxxxxxxxxx/control.sock' is the longest socket path below the data directory.
  if (Buffer.byteLength(join(dataDir, 'vms/vm-000000000000/control.sock')) > 107)
    throw new ThawError(
      'bad-config',
      `THAW_DATA_DIR: ${dataDir} is too long: unix sockets below it would pass 107 bytes`,
    );
  const under = (...parts: string[]) => join(dataDir, ...parts);
  const checked = (pattern: RegExp, id: string) => {
    if (!pattern.test(id))
      throw new ThawError('bad-request', `not a valid id: ${JSON.stringify(id.slice(0, 64))}`);
    return id;
  };
  return {
    dataDir,
    lock: under('lock'),
    apiKey: under('api-key'),
    redisDir: under('redis'),
    redisSocket: under('redis', 'redis.sock'),
    snapshotsDir: under('snapshots'),
    vmsDir: under('vms'),
    bundlesDir: under('bundles'),
    pagerDir: under('pager'),
    keptDir: under('kept'),
    spoolDir: under('spool'),
    clusterKey: under('cluster-key'),
    pagefsDir: under('pagefs'),
    hypervisorChoice: under('hypervisor.json'),
    networkDir: under('network'),
    jailDir: under('jail'),
    log: under('thaw.log'),
    vmDir: (vmId) => under('vms', checked(vmIdPattern, vmId)),
    snapshotDir: (snapshotId) => under('snapshots', checked(snapshotIdPattern, snapshotId)),
    bundle: (sha256) => under('bundles', `${checked(/^[0-9a-f]{64}$/, sha256)}.tar`),
  };
}

/** The files of a captured VM inside its snapshot directory. */
export const capturedFilesIn = (dir: string): CapturedFiles => ({
  pagesPath: join(dir, 'pages'),
  devicesPath: join(dir, 'devices'),
  diskPath: join(dir, 'disk'),
});

/**
 * All files that a snapshot's directory may hold. Its memory is whole (`pages`), or what changed (`delta`, in the places
 * that `delta-runs` lists) over `base-pages`; its disk stands over the image's empty one, or over `base-disk`. Both bases
 * are hard links: they stay whatever becomes of the snapshot they were made for. Memory that is still in the store is
 * described by `manifest`.
 */
export interface SnapshotFiles extends CapturedFiles {
  basePagesPath: string;
  deltaPath: string;
  deltaRunsPath: string;
  baseDiskPath: string;
  manifestPath: string;
}

export const snapshotFilesIn = (dir: string): SnapshotFiles => ({
  ...capturedFilesIn(dir),
  basePagesPath: join(dir, 'base-pages'),
  deltaPath: join(dir, 'delta'),
  deltaRunsPath: join(dir, 'delta-runs'),
  baseDiskPath: join(dir, 'base-disk'),
  manifestPath: join(dir, 'manifest'),
});

/** Where a VM keeps its own links to its snapshot's files: whoever removes the snapshot takes nothing from it. */
export const cloneFilesDir = (runDir: string): string => join(runDir, 'from');
