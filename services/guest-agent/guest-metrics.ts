// Owns the guest's own view of its resources: processor, memory, disk, in the fields of the contract.
// Refuses to own sampling over time (whoever asks does that). Loaded when it is first asked for.
// Invariant: every figure is read from the kernel at the time of the call; the processor's is over the time since the last.
import { readFile, statfs } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

const mib = 1024 * 1024;
/** Over less time than this the kernel's clock ticks are too coarse for a share. */
const minSpanMs = 50;

interface ProcessorTimes {
  atMs: number;
  busy: number;
  total: number;
}

let last: ProcessorTimes | undefined;

/** @param diskPath a path on the disk whose room counts. */
export async function readMetrics(diskPath: string): Promise<object> {
  const cpuUsedPct = await processorShare();
  const memory = memoryOf(await readFile('/proc/meminfo', 'latin1'));
  const disk = await statfs(diskPath);
  return {
    ts: Math.floor(Date.now() / 1000),
    cpu_count: availableParallelism(),
    cpu_used_pct: cpuUsedPct,
    mem_total: memory.totalBytes,
    mem_used: memory.usedBytes,
    mem_cache: memory.cacheBytes,
    mem_total_mib: Math.floor(memory.totalBytes / mib),
    mem_used_mib: Math.floor(memory.usedBytes / mib),
    disk_total: disk.blocks * disk.bsize,
    disk_used: (disk.blocks - disk.bfree) * disk.bsize,
  };
}

/** 0 to 100 over all processors. */
async function processorShare(): Promise<number> {
  let since = last;
  if (since === undefined || performance.now() - since.atMs < minSpanMs) {
    since = await processorTimes();
    await delay(minSpanMs);
  }
  last = await processorTimes();
  return shareBetween(since, last);
}

export function shareBetween(since: Omit<ProcessorTimes, 'atMs'>, now: Omit<ProcessorTimes, 'atMs'>): number {
  const total = now.total - since.total;
  const share = total <= 0 ? 0 : ((now.busy - since.busy) / total) * 100;
  return Math.round(Math.min(100, Math.max(0, share)) * 100) / 100;
}

async function processorTimes(): Promise<ProcessorTimes> {
  return { atMs: performance.now(), ...timesOf(await readFile('/proc/stat', 'latin1')) };
}

/** @param text of /proc/stat: user nice system idle iowait irq softirq steal; time of guests is in user already. */
export function timesOf(text: string): Omit<ProcessorTimes, 'atMs'> {
  const ticks = text.slice(0, text.indexOf('\n')).split(/\s+/).slice(1, 9).map(Number);
  const total = ticks.reduce((sum, count) => sum + count, 0);
  return { total, busy: total - ticks[3]! - ticks[4]! };
}

/** @param text of /proc/meminfo. */
export function memoryOf(text: string): { totalBytes: number; usedBytes: number; cacheBytes: number } {
  const bytesOf = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(text)?.[1] ?? 0) * 1024;
  const totalBytes = bytesOf('MemTotal');
  return { totalBytes, usedBytes: totalBytes - bytesOf('MemAvailable'), cacheBytes: bytesOf('Cached') };
}
