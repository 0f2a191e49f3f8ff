// Owns the metric registry: every series Thaw exports is declared here once, and listed in docs/metrics.md.
// Invariant: names are those of the fixed interfaces; durations are seconds.
import { AggregatorRegistry, Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';

export const registry = new Registry();

/** Dense from 0.25 ms to 10 s: restores and warm requests differ by three orders of magnitude. */
export const durationBuckets = [
  0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
  0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10,
];

const histogram = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
  new Histogram({ name, help, labelNames, buckets: durationBuckets, registers: [registry] });
const counter = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
  new Counter({ name, help, labelNames, registers: [registry] });
const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[]) =>
  new Gauge({ name, help, labelNames, registers: [registry], collect: refreshGauges });

const gaugeSources = new Set<() => void>();

function refreshGauges(): void {
  for (const publish of gaugeSources) publish();
}

/** Calls `publish` at every scrape, so that gauges cost nothing in between. @returns what ends that. */
export function publishAtScrape(publish: () => void): () => void {
  gaugeSources.add(publish);
  return () => void gaugeSources.delete(publish);
}

export const metrics = {
  invocationDuration: histogram(
    'thaw_invocation_duration_seconds',
    'Request received to response headers sent.',
    ['tier', 'outcome'],
  ),
  invocationStage: histogram(
    'thaw_invocation_stage_seconds',
    'Stages of an invocation: queue, place, lease, exec.',
    ['stage'],
  ),
  leaseAcquire: histogram('thaw_lease_acquire_seconds', 'Lease asked to lease granted.', ['tier']),
  restoreStage: histogram(
    'thaw_restore_stage_seconds',
    'Stages of a restore: disk, spawn, delta, load, resume, handshake, prime, total.',
    ['stage', 'source'],
  ),
  snapshotPause: histogram('thaw_snapshot_pause_seconds', 'Time a running VM was paused for a snapshot.', []),
  snapshotStage: histogram(
    'thaw_snapshot_stage_seconds',
    'Stages of a capture: hold, pause, state, scan, copy, disk, resume, proceed, write, layers, record; of a build: seal, pause, state, disk.',
    ['stage'],
  ),
  pagefsRead: histogram('thaw_pagefs_read_seconds', 'Reads served by the page file system.', ['source']),
  storeRequest: histogram('thaw_store_request_seconds', 'Requests to the blob store.', ['op', 'outcome']),
  vms: gauge('thaw_vms', 'VMs by state.', ['state']),
  poolWarm: gauge('thaw_pool_warm', 'Warm VMs by snapshot key.', ['key']),
  queueDepth: gauge('thaw_queue_depth', 'Requests that wait for a VM.', []),
  snapshotDirtyBytes: counter(
    'thaw_snapshot_dirty_bytes_total',
    'Bytes of guest memory that captures copied.',
    [],
  ),
  storeBytes: counter('thaw_store_bytes_total', 'Bytes moved to and from the blob store.', ['op']),
  verifyFailures: counter('thaw_verify_failures_total', 'Frames or manifests that failed verification.', []),
  fallbacks: counter('thaw_fallbacks_total', 'Times a slower path was taken.', ['kind']),
  evictions: counter(
    'thaw_evictions_total',
    'Things removed from a disk that had filled up: snapshot, upload, kept-page-file, spool.',
    ['kind'],
  ),
  evictedBytes: counter('thaw_evicted_bytes_total', 'Bytes that evictions gave back.', ['kind']),
  dataDiskUsed: gauge(
    'thaw_data_disk_used_ratio',
    'Part of the file system of the data directory that is in use.',
    [],
  ),
  leaksReclaimed: counter(
    'thaw_leaks_reclaimed_total',
    'Resources of an earlier run that were cleaned up at start.',
    ['kind'],
  ),
};

/** Process-level series (CPU, memory, event loop). Called once by the program, never by a library. */
export const startDefaultMetrics = (): void => collectDefaultMetrics({ register: registry });

/** This process's series with those of another one added up. */
export async function mergedMetrics(others: unknown[]): Promise<string> {
  if (others.length === 0) return registry.metrics();
  const own = await registry.getMetricsAsJSON();
  return AggregatorRegistry.aggregate([own, others as typeof own]).metrics();
}
