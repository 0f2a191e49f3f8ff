// Owns the control groups of VMMs: one below `thaw-HASH`, where HASH stands for the data directory, with limits set
// before its process joins. Invariant: an empty group is nobody's and is removed; limits that this host cannot set are
// named, never silently left out.
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

  async create(name: string, limits: CgroupLimits): Promise<Cgroup> {
    const dir = join(this.#dir, name);
    await mkdir(dir);
    const quotaUs = Math.round((limits.vcpus + deviceShare) * cpuPeriodUs);
    const settings: [(typeof controllers)[number], string, string][] = [
      ['cpu', 'cpu.max', `${quotaUs} ${cpuPeriodUs}`],
      ['memory', 'memory.max', String((limits.memoryMb + overheadMb) * 1024 * 1024)],
      ['pids', 'pids.max', String(maxTasks)],
      ['io', 'io.weight', '100'],
    ];
    for (const [controller, file, value] of settings)
      if (!this.missing.includes(controller))
        // Weights exist only with a scheduler that knows them.
        await writeFile(join(dir, file), value, { flag: 'r+' }).catch((error: NodeJS.ErrnoException) => {
          if (!(controller === 'io' && error.code === 'ENOENT')) throw error;
        });
    return { add: (pid) => writeFile(join(dir, 'cgroup.procs'), String(pid)), remove: () => removed(dir) };
  }

  /** Removes the directory of all groups; those of VMMs must be gone. */
  async close(): Promise<void> {
    await removed(this.#dir);
  }
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
