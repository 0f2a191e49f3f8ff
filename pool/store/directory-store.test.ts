import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describeStoreConformance } from './conformance.ts';
import { DirectoryStore } from './directory-store.ts';
import { openStore } from './open-store.ts';

const inTemporaryDir = (open: (dir: string) => ReturnType<typeof openStore>) => async () => {
  const dir = await mkdtemp(join(tmpdir(), 'thaw-store-'));
  const store = await open(dir);
  return {
    store,
    close: async () => {
      await store.close();
      await rm(dir, { recursive: true, force: true });
    },
  };
};

describeStoreConformance(
  'directory',
  inTemporaryDir((dir) => DirectoryStore.open(dir)),
);
describeStoreConformance(
  'directory, with all that openStore adds',
  inTemporaryDir((dir) => openStore(`file://${dir}`)),
);
