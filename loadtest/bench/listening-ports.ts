// Owns finding the host ports that a process listens on: how a benchmark reaches a guest without Thaw in between.
// Source: proc(5): the inode of a socket stands in /proc/net/tcp and behind the links of /proc/PID/fd.
import { readdir, readFile, readlink } from 'node:fs/promises';

const listening = '0A';

/** TCP ports on IPv4. */
export async function listeningPortsOf(pid: number): Promise<number[]> {
  const inodes = await socketInodesOf(pid);
  const rows = (await readFile('/proc/net/tcp', 'utf8')).trim().split('\n').slice(1);
  return rows.flatMap((row) => {
    const [, local, , state, , , , , , inode] = row.trim().split(/\s+/);
    return state === listening && inodes.has(inode!) ? [Number.parseInt(local!.split(':')[1]!, 16)] : [];
  });
}

async function socketInodesOf(pid: number): Promise<Set<string>> {
  const dir = `/proc/${pid}/fd`;
  const links = await Promise.all(
    (await readdir(dir)).map((name) => readlink(`${dir}/${name}`).catch(() => '')),
  );
  return new Set(links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []));
}
