// Owns the control groups of VMMs: one below `thaw-HASH`, where HASH stands for the data directory, that a process joins
// ahead of need (the kernel stops for every process that moves) and that gets its limits before there is a guest.
// Invariant: an empty group is nobody's and is removed; limits that this host cannot set are named, never silently left out.
import { createHash } from 'node:crypto';
import { access, mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

const cgroupRoot = '/sys/fs/cgroup';
const controllers = ['cpu', 'memory', 'pids', 'io'] as const;
/** The VMM itself: device threads, page tables, buffers. */
const overheadMb = 128;
const maxTasks = 128;
const cpuPeriodUs = 100_000;
/** Of one CPU, for the device threads beside the vCPUs. */
const deviceShare = 0.5;
/** A group is busy until its last process has been reaped. */
const removeAttempts = 200;
const removeRetryMs = 5;

export interface CgroupLimits {
  memoryMb: number;
  vcpus: number;
}

export interface Cgroup {
  add(pid: number): Promise<void>;
  limit(limits: CgroupLimits): Promise<void>;
  /** After its process has ended. */
  remove(): Promise<void>;
}

export class Cgroups {
  readonly #dir: string;
  /** Controllers that are not in force here. */
  readonly missing: readonly string[];

  private constructor(dir: string, missing: readonly string[]) {
    this.#dir = dir;
    this.missing = missing;
  }

  /** @returns undefined where this process may not make groups. Removes the empty ones of an earlier run. */
  static async open(dataDir: string): Promise<Cgroups | undefined> {
    const hash = createHash('sha256').update(dataDir).digest('hex').slice(0, 12);
    const dir = join(cgroupRoot, `thaw-${hash}`);
    try {
      // Where groups of version 1 are mounted this is any directory, in which files could be made that mean nothing.
      await access(join(cgroupRoot, 'cgroup.controllers'));
      const missing = await delegated(cgroupRoot);
      await mkdir(dir, { recursive: true });
      for (const name of await readdir(dir)) await rmdir(join(dir, name)).catch(() => {});
      return new Cgroups(dir, [...new Set([...missing, ...(await delegated(dir))])]);
    } catch {
      return undefined;
    }
  }

  async create(name: string): Promise<Cgroup> {
    const dir = join(this.#dir, name);
    await mkdir(dir);
    return {
      add: (pid) => writeFile(join(dir, 'cgroup.procs'), String(pid)),
      limit: (limits) => this.#limit(dir, limits),
      remove: () => removed(dir),
    };
  }

  async #limit(dir: string, limits: CgroupLimits): Promise<void> {
    const quotaUs = Math.round((limits.vcpus + deviceShare) * cpuPeriodUs);
    const settings: [(typeof controllers)[number], string, string][] = [
      ['cpu', 'cpu.max', `${quotaUs} ${cpuPeriodUs}`],
      ['memory', 'memory.max', String((limits.memoryMb + overheadMb) * 1024 * 1024)],
      ['pids', 'pids.max', String(maxTasks)],
      ['io', 'io.weight', '100'],
    ];
    const possible = settings.filter(([controller]) => !this.missing.includes(controller));
    await Promise.all(possible.map(([controller, file, value]) => set(controller, join(dir, file), value)));
  }

  /** Removes the directory of all groups; those of VMMs must be gone. */
  async close(): Promise<void> {
    await removed(this.#dir);
  }
}

async function set(controller: (typeof controllers)[number], path: string, value: string): Promise<void> {
  await writeFile(path, value, { flag: 'r+' }).catch((error: NodeJS.ErrnoException) => {
    // Weights exist only with a scheduler that knows them.
    if (!(controller === 'io' && error.code === 'ENOENT')) throw error;
  });
}

/** @returns the controllers that children of `dir` cannot have. */
async function delegated(dir: string): Promise<string[]> {
  const file = join(dir, 'cgroup.subtree_control');
  for (const controller of controllers) await writeFile(file, `+${controller}`).catch(() => {});
  const present = (await readFile(file, 'utf8')).trim().split(' ');
  return controllers.filter((controller) => !present.includes(controller));
}

async function removed(dir: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const error = await rmdir(dir).then(
      () => undefined,
      (failure: NodeJS.ErrnoException) => failure,
    );
    if (error === undefined || error.code === 'ENOENT') return;
    if (error.code !== 'EBUSY' || attempt === removeAttempts) throw error;
    await delay(removeRetryMs);
  }
}
