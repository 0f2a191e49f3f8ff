// Owns what local-crash.test.ts interrupts: everything that gives a node's library a snapshot, changes its form or takes
// it away, each as one call on a data directory. Refuses to own the interruption (dying-for-tests.ts).
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { silentLog as log } from '../../shared/log.ts';
import { pathsOf } from '../host/paths.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { bringSnapshot } from './arrival.ts';
import { captureVm } from './capture.ts';
import { testId, testKey, testPage } from './capture-for-tests.ts';
import { Catalogue } from './catalogue.ts';
import { takeCloneFiles } from './clone-files.ts';
import { SnapshotLibrary } from './library.ts';
import { SimulatedMachine } from './simulated-machine.ts';

/** The one that is there before, or comes. */
export const deedId = testId(1);
export const changedPage = testPage(77);

const libraryIn = (dataDir: string) => new SnapshotLibrary({ paths: pathsOf(dataDir), log });

async function arrive(dataDir: string, storeDir: string, paged: boolean): Promise<void> {
  const store = await DirectoryStore.open(storeDir);
  const manifest = await new Catalogue({ store, clusterKey: testKey }).load(deedId);
  const blankDiskPath = join(dataDir, 'blank');
  await bringSnapshot(manifest, {
    store,
    clusterKey: testKey,
    paths: pathsOf(dataDir),
    blankDiskPath,
    paged,
  });
}

/** Of a clone in which one page has changed. */
async function capture(dataDir: string): Promise<void> {
  const library = libraryIn(dataDir);
  const machine = new SimulatedMachine();
  machine.pages = changedPage;
  const runDir = library.paths.vmDir(machine.vmId);
  await mkdir(runDir, { recursive: true });
  const files = await takeCloneFiles(library, deedId, runDir);
  const source = { machine, files, control: await machine.control(), onLost: () => {} };
  await captureVm(library, source, { resume: true, names: ['captured'] });
}

export const deeds = {
  arrivePaged: (dataDir: string, storeDir: string) => arrive(dataDir, storeDir, true),
  arriveWhole: (dataDir: string, storeDir: string) => arrive(dataDir, storeDir, false),
  becomeWhole: (dataDir: string) =>
    libraryIn(dataDir).becomeWhole(deedId, join(pathsOf(dataDir).keptDir, deedId)),
  materialise: (dataDir: string) => libraryIn(dataDir).materialise(deedId),
  capture,
  evict: async (dataDir: string) => void (await libraryIn(dataDir).evict(deedId)),
  remove: (dataDir: string) => libraryIn(dataDir).remove(deedId),
};
