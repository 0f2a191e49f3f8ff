// Owns getting a FUSE mount and losing it: /dev/fuse opened here, mount(8) given the descriptor, umount(8).
// Refuses to own the conversation on the descriptor (fuse-session.ts).
// Invariant: a mount that could not be made leaves no descriptor; the last descriptor's end ends the file system.
import { execFile } from 'node:child_process';
import { type FileHandle, mkdir, mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ThawError } from '../../shared/errors.ts';
import { startChild } from '../host/child.ts';

const run = promisify(execFile);
/** As /proc/self/mountinfo shows it. */
export const pagefsType = 'fuse.thaw';
const mountTimeoutMs = 5_000;

/**
 * @returns the descriptor to speak on. The mount call returns before the file system has answered anything.
 * @throws ThawError `mount-failed`.
 */
export async function mountFuse(dir: string): Promise<FileHandle> {
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const device = await open('/dev/fuse', 'r+').catch((error: Error) => {
    throw refusal(error.message);
  });
  try {
    await mountOn(device.fd, dir);
    return device;
  } catch (error) {
    await device.close();
    throw error;
  }
}

async function mountOn(fd: number, dir: string): Promise<void> {
  // Read-write, because VMMs open page files so although their private mappings never write; we refuse every WRITE.
  // allow_other: a VMM runs under a user id of its own. Permission bits still hold, through default_permissions.
  const options = [
    'fd=3,rootmode=040000,user_id=0,group_id=0',
    'allow_other,default_permissions,nosuid,nodev,noexec,noatime',
  ].join(',');
  // -i: no mount.fuse helper, which would want to start a server of its own.
  const child = await startChild('mount', ['-i', '-t', pagefsType, '-o', options, 'pagefs', dir], {
    extraStdio: [fd],
  }).catch((error: Error) => {
    throw refusal(error.message);
  });
  const timer = setTimeout(() => child.process.kill('SIGKILL'), mountTimeoutMs);
  const { exitCode, signal, stderrTail } = await child.exited;
  clearTimeout(timer);
  if (exitCode !== 0) throw refusal(stderrTail.trim() || `mount ended with ${signal ?? exitCode}`);
}

const refusal = (reason: string) =>
  new ThawError('mount-failed', `the page file system could not be mounted: ${reason}`);

/** Takes the mount away, at once for new users and when they end for those that still have files open. */
export const unmountFuse = (dir: string): Promise<void> => unmount(dir, '-l');

/**
 * `-f` aborts the conversation first: a thread of a dead server that waits for a page which the server owes cannot end,
 * no signal reaches it, and while it lives the kernel goes on waiting for the server.
 */
const abortMount = (dir: string): Promise<void> => unmount(dir, '-f', '-l');

async function unmount(dir: string, ...how: string[]): Promise<void> {
  // --no-canonicalize: looking at a mount whose server is dead is an error in itself.
  await run('umount', ['-i', ...how, '--no-canonicalize', dir], { timeout: mountTimeoutMs });
}

/** How many pagefs mounts stand on `dir`; more than one when dead ones were mounted over. */
export async function mountsOn(dir: string): Promise<number> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  return lines.filter((line) => {
    const [, , , , mountPoint = ''] = line.split(' ');
    return unescapeOctal(mountPoint) === dir && line.includes(` - ${pagefsType} `);
  }).length;
}

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));

/** Removes what a dead pager left on `dir`, and ends who waits for it with an error. @returns how many mounts that were. */
export async function unmountStale(dir: string): Promise<number> {
  const count = await mountsOn(dir);
  for (let left = count; left > 0; left--)
    try {
      await abortMount(dir);
    } catch (error) {
      // Its own pager may have been quicker.
      if ((await mountsOn(dir)) >= left) throw error;
    }
  return count;
}

/** Whether this process may mount: tried out, because privileges, containers and kernels all have a say. */
export async function canMountFuse(): Promise<{ ok: true } | { ok: false; reason: string }> {
  const dir = await mkdtemp(join(tmpdir(), 'thaw-fuse-'));
  try {
    const device = await mountFuse(dir);
    try {
      await unmountFuse(dir);
    } finally {
      await device.close();
    }
    return { ok: true };
  } catch (error) {
    return { ok: false, reason: (error as Error).message };
  } finally {
    await rm(dir, { recursive: true, force: true }).catch(() => {});
  }
}
