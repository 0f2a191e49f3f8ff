// Owns what snapshots take in a store: a template, and one of two siblings that were captured from clones of it.
// Refuses to own publishing (pool/snapshot). Invariant: bytes are those of the store's objects, after compression, and a
// sibling's are only those that the store did not hold before.
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { localCaptureOf } from '../../pool/snapshot/local-capture.ts';
import { Publisher } from '../../pool/snapshot/publish.ts';
import type { SnapshotRecord } from '../../pool/snapshot/record.ts';
import { ClusterKey } from '../../pool/snapshot/signed-object.ts';
import { DirectoryStore } from '../../pool/store/directory-store.ts';
import { Cleanup } from '../../shared/cleanup.ts';
import type { BenchWorld } from './bench-world.ts';
import type { Metric } from './benchmark.ts';
import { openGuest } from './captured-guest.ts';

/** What a short session leaves: a program was run, a file was written. */
const session = 'python3 -c "print(sum(range(100000)))" > result; sync';

export async function storedSizes(world: BenchWorld, memoryMb: number): Promise<Metric[]> {
  const ramBytes = memoryMb * 1024 * 1024;
  const store = await DirectoryStore.open(join(world.dataDir, 'store'));
  const publisher = await Publisher.open({
    store,
    clusterKey: new ClusterKey(randomBytes(32)),
    spoolDir: join(world.dataDir, 'spool'),
  });
  try {
    const templateId = await world.builder.ensureTemplate({ memoryMb, vcpus: 1 });
    const template = await world.factory.library.record(templateId);
    const whole = await publisher.publish(await localCaptureOf(template));
    const siblings = [await saveSession(world, templateId), await saveSession(world, templateId)];
    const addedBytes: number[] = [];
    for (const sibling of siblings) {
      const { manifest } = await publisher.publish(await localCaptureOf(sibling, template));
      addedBytes.push(manifest.addedBytes);
    }
    const unique = addedBytes.at(-1)!;
    const row = (key: string, value: number, max?: number): Metric => ({
      ...{ key, value, unit: 'fraction', n: 1 },
      ...(max === undefined ? {} : { goal: { max } }),
    });
    return [
      row('storedVsRam', whole.manifest.addedBytes / ramBytes, 0.15),
      row('uniqueStoredFraction', unique / ramBytes, 0.05),
      row('uniqueOfStored', unique / (whole.manifest.addedBytes + unique)),
    ];
  } finally {
    await publisher.close();
  }
}

async function saveSession(world: BenchWorld, templateId: string): Promise<SnapshotRecord> {
  await using cleanup = new Cleanup();
  const guest = await openGuest(world, templateId, cleanup);
  await guest.shell.run(session);
  return guest.capture(() => {});
}
