// Owns what a clone costs on a node that has nothing of its snapshot but the store, whose every answer begins late:
// time to the answer of the request it was restored for and what the store had sent by then (whatever it was for, as a
// part of the guest's memory); with the working set, without it, and against a restore from local pages in the same run.
// Invariant: every cold restore is by a node of its own with an empty directory and a pager that never served; one
// without a working set is never the second: the first one's would be known.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { request } from 'undici';
import { pathsOf } from '../../../pool/host/paths.ts';
import { SnapshotLibrary } from '../../../pool/snapshot/library.ts';
import { localCaptureOf } from '../../../pool/snapshot/local-capture.ts';
import { Publisher } from '../../../pool/snapshot/publish.ts';
import { ClusterKey } from '../../../pool/snapshot/signed-object.ts';
import { workingSetKey } from '../../../pool/snapshot/store-keys.ts';
import { type FaultProxy, startFaultProxy } from '../../../pool/store/fault-proxy-for-tests.ts';
import { openStore } from '../../../pool/store/open-store.ts';
import { s3Missing, startS3, testCredentials } from '../../../pool/store/s3-server-for-tests.ts';
import { LocalVmFactory } from '../../../pool/vm-factory.ts';
import { joinStore } from '../../../services/cli/node-store.ts';
import { Cleanup } from '../../../shared/cleanup.ts';
import { type Config, resolveConfig } from '../../../shared/config.ts';
import { silentLog } from '../../../shared/log.ts';
import { acceleratorOption, type BenchWorld, buildHello, openBenchWorld } from '../bench-world.ts';
import type { Bench, Benchmark, Metric, Outcome } from '../benchmark.ts';
import { median, percentilesMs } from '../percentile.ts';

/** One restore without a working set to so many with one: it is slow, and the yardstick. */
const blindEvery = 3;
const restoreTimeoutMs = 240_000;
const memoryMb = 256;
const imageBytes = memoryMb * 1024 * 1024;

export const cold: Benchmark = {
  name: 'cold',
  summary: 'restore on an empty node from a store that is far away, with and without the working set',
  n: { default: 12, description: 'cold restores with the working set' },
  options: {
    ...acceleratorOption,
    'first-byte-ms': { default: 100, description: 'delay of every answer of the store' },
  },
  run,
};

interface Answered {
  answerMs: number;
  fetchedBytes: number;
}

interface Samples {
  local: number[];
  knowing: Answered[];
  blind: Answered[];
}

async function run(bench: Bench): Promise<Outcome> {
  const missing = await s3Missing();
  if (missing !== undefined) throw new Error(missing);
  const world = await openBenchWorld(bench);
  const far = await openFarStore(bench);
  const { config } = far;
  bench.progress('publishing two versions of the function, one with its working set');
  const knowing = await buildHello(world);
  await publish(world, config, knowing);
  // After the node has left: it would publish this one in its own way.
  const blind = await buildHello(world);
  await publishUnrehearsed(world, config, blind);
  const restoreBlind = async () => {
    await forgetWorkingSet(config, blind);
    return await restoreCold(world, far, blind);
  };
  const samples: Samples = { local: [], knowing: [], blind: [] };
  bench.progress(`${bench.n} restores on empty nodes`);
  for (let turn = 0; turn < bench.n; turn++) {
    samples.local.push(await answerMs(world.factory, knowing));
    samples.knowing.push(await restoreCold(world, far, knowing));
    if (turn % blindEvery === 0) samples.blind.push(await restoreBlind());
  }
  return { n: bench.n, ...world.facts, metrics: metricsOf(samples) };
}

interface FarStore {
  config: Config;
  proxy: FaultProxy;
}

/** A real S3 server behind a proxy that makes every answer late. */
async function openFarStore(bench: Bench): Promise<FarStore> {
  const s3 = await startS3();
  bench.cleanup.defer('S3 server', () => s3.stop());
  const proxy = await startFaultProxy(s3.port, { firstByteDelayMs: bench.number('first-byte-ms') });
  bench.cleanup.defer('proxy', () => proxy.close());
  // As for every program that speaks to S3; the pager finds them there, too.
  process.env.AWS_ACCESS_KEY_ID = testCredentials.accessKeyId;
  process.env.AWS_SECRET_ACCESS_KEY = testCredentials.secretAccessKey;
  const env = {
    THAW_STORE: `s3://${s3.bucket}/bench`,
    THAW_S3_ENDPOINT: proxy.endpoint,
    THAW_CLUSTER_KEY: '11'.repeat(32),
  };
  return { config: resolveConfig({ env, defaults: { dataDir: tmpdir() } }).config, proxy };
}

/** As a node does: over its template, which is there before. */
async function publish(world: BenchWorld, config: Config, knowing: string): Promise<void> {
  const { paths, image, factory } = world;
  const record = await factory.library.record(knowing);
  const node = (await joinStore({ config, paths, log: silentLog, image, factory }))!;
  try {
    node.stored.added(await factory.library.record(record.parent!));
    node.stored.added(record);
    await node.stored.settled();
    if (node.stored.stateOf(knowing) !== 'stored') throw new Error(`${knowing} was not published`);
  } finally {
    await node.close();
  }
}

/** As it is where nothing can record: laid out by address, no working set. */
async function publishUnrehearsed(world: BenchWorld, config: Config, snapshotId: string): Promise<void> {
  await using cleanup = new Cleanup();
  const store = await openStore(config.store!, { s3Endpoint: config.s3Endpoint! });
  cleanup.defer('store', () => store.close());
  const clusterKey = new ClusterKey(Buffer.from(config.clusterKey!, 'hex'));
  const spoolDir = join(world.dataDir, 'unrehearsed');
  const publisher = await Publisher.open({ store, clusterKey, spoolDir });
  cleanup.defer('publisher', () => publisher.close());
  await publisher.publish(await localCaptureOf(await world.factory.library.record(snapshotId)));
}

async function forgetWorkingSet(config: Config, snapshotId: string): Promise<void> {
  const store = await openStore(config.store!, { s3Endpoint: config.s3Endpoint! });
  await store.delete(workingSetKey(snapshotId));
  await store.close();
}

async function restoreCold(
  world: BenchWorld,
  { config, proxy }: FarStore,
  snapshotId: string,
): Promise<Answered> {
  await using cleanup = new Cleanup();
  const dataDir = await mkdtemp(join(tmpdir(), 'thaw-cold-'));
  cleanup.defer('data directory', () => rm(dataDir, { recursive: true, force: true }));
  const paths = pathsOf(dataDir);
  const { hypervisor, image } = world;
  const library = new SnapshotLibrary({ paths, log: silentLog });
  const factory = new LocalVmFactory({ hypervisor, image, paths, log: silentLog, library });
  const node = (await joinStore({ config, paths, log: silentLog, image, factory }))!;
  cleanup.defer('node', () => node.close());
  const before = proxy.bytesDown;
  let fetchedBytes = 0;
  const ms = await answerMs(factory, snapshotId, () => {
    fetchedBytes = proxy.bytesDown - before;
  });
  return { answerMs: ms, fetchedBytes };
}

/** From asking for a clone to its function's answer, on the connection that a node keeps. @param answered called at that moment. */
async function answerMs(
  factory: LocalVmFactory,
  snapshotId: string,
  answered: () => void = () => {},
): Promise<number> {
  const startMs = performance.now();
  const vm = await factory.restore(snapshotId, AbortSignal.timeout(restoreTimeoutMs));
  try {
    const { body } = await request(vm.runnerOrigin!, { dispatcher: vm.runnerConnections! });
    await body.json();
    const elapsedMs = performance.now() - startMs;
    answered();
    return elapsedMs;
  } finally {
    await vm.destroy();
  }
}

function metricsOf({ local, knowing, blind }: Samples): Metric[] {
  const knowingMs = knowing.map((each) => each.answerMs);
  const blindMs = blind.map((each) => each.answerMs);
  const n = knowing.length;
  const fraction = median(knowing.map((each) => each.fetchedBytes)) / imageBytes;
  const overLocalMs = median(knowingMs) - median(local);
  return [
    ...percentilesMs('answerMs', knowingMs, ['p50', 'p99']),
    ...percentilesMs('localMs', local, ['p50', 'p99']),
    ...percentilesMs('blindMs', blindMs, ['p50']),
    { key: 'bytesFraction', value: fraction, unit: 'fraction', n, goal: { max: 0.15 } },
    { key: 'overLocalMs', value: overLocalMs, unit: 'ms', n, goal: { max: 500 } },
    { key: 'vsLocal', value: median(knowingMs) / median(local), unit: 'ratio', n },
    {
      key: 'blindVsWorkingSet',
      value: median(blindMs) / median(knowingMs),
      unit: 'ratio',
      n: blind.length,
      goal: { min: 3 },
    },
  ];
}
