// Owns the golden vectors of the snapshot format: a small snapshot and its child, made from a seed.
// Run as a program it writes test/fixtures/snapshot-format; a test holds today's code to those files. They may only
// change together with the format's version.
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { allKeys } from '../store/blob-store.ts';
import { DirectoryStore } from '../store/directory-store.ts';
import { deltaCapture, testImage, testKey, testPage, wholeCapture } from './capture-for-tests.ts';
import { pageBytes } from './extents.ts';
import { imageNames, type Manifest } from './manifest.ts';
import { Publisher } from './publish.ts';

export const goldenDir = fileURLToPath(new URL('../../test/fixtures/snapshot-format', import.meta.url));

export interface Golden {
  /** Key → bytes of the object. */
  objects: Map<string, Buffer>;
  root: Manifest;
  child: Manifest;
}

export async function makeGolden(): Promise<Golden> {
  const dir = await mkdtemp(join(tmpdir(), 'thaw-golden-'));
  try {
    const store = await DirectoryStore.open(join(dir, 'store'));
    const options = { store, clusterKey: testKey, spoolDir: join(dir, 'spool'), threads: 1, reserveBytes: 0 };
    const publisher = await Publisher.open(options);
    const image = testImage(42, 1);
    const rootCapture = { ...(await wholeCapture(join(dir, 'root'), 1, image)), prime: ['/', '/health'] };
    const { manifest: root } = await publisher.publish(rootCapture);
    for (const page of [5, 6, 100]) testPage(9_000 + page).copy(image.memory, page * pageBytes);
    image.memory.fill(0, 8 * pageBytes, 9 * pageBytes);
    const dirty = { memory: [5, 6, 8, 100], disk: [] };
    const childCapture = await deltaCapture(join(dir, 'child'), 2, image, rootCapture, dirty);
    const facts = { pauseMs: 12.5, dirtyPages: 4 };
    const { manifest: child } = await publisher.publish({ ...childCapture, facts });
    await publisher.close();
    const objects = new Map<string, Buffer>();
    for await (const key of allKeys(store, '')) objects.set(key, await store.get(key));
    return { objects, root, child };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

/** What the images are, for readers in other languages: sizes and digests of their bytes. */
export function expectations({ objects }: Golden): unknown {
  const image = testImage(42, 1);
  const digests = () =>
    Object.fromEntries(
      imageNames.map((name) => [name, createHash('sha256').update(image[name]).digest('hex')]),
    );
  const root = digests();
  for (const page of [5, 6, 100]) testPage(9_000 + page).copy(image.memory, page * pageBytes);
  image.memory.fill(0, 8 * pageBytes, 9 * pageBytes);
  return {
    clusterKey: '07'.repeat(32),
    objects: [...objects.keys()].sort(),
    imageSha256: { root, child: digests() },
  };
}

async function writeGolden(): Promise<void> {
  const golden = await makeGolden();
  await rm(goldenDir, { recursive: true, force: true });
  await mkdir(goldenDir, { recursive: true });
  await writeFile(join(goldenDir, 'expected.json'), `${JSON.stringify(expectations(golden), null, 2)}\n`);
  for (const [key, bytes] of golden.objects) {
    const path = join(goldenDir, key.replaceAll('/', '-'));
    await writeFile(path, bytes);
  }
}

if (import.meta.main) await writeGolden();
