// Owns finding where a guest is reached without Thaw in between: the addresses its VMM listens on.
// Source: proc(5): the inode of a socket stands in /proc/PID/net/tcp, which is of the process's own network namespace,
// and behind the links of /proc/PID/fd.
import { readdir, readFile, readlink } from 'node:fs/promises';
import { pathsOf } from '../../pool/host/paths.ts';
import { readProcessRecord } from '../../pool/host/process-table.ts';

const listening = '0A';

/** @returns the first origin of a VM of this data directory for which `isIt` holds. @throws Error when there is none. */
export async function findGuest(
  dataDir: string,
  isIt: (origin: string) => Promise<boolean>,
): Promise<string> {
  const paths = pathsOf(dataDir);
  for (const vmId of await readdir(paths.vmsDir)) {
    const record = await readProcessRecord(paths.vmDir(vmId));
    for (const origin of record ? await listeningOriginsOf(record.pid) : [])
      if (await isIt(origin)) return origin;
  }
  throw new Error('no VM of this Thaw forwards a port to what is looked for');
}

/** TCP on IPv4. */
async function listeningOriginsOf(pid: number): Promise<string[]> {
  const inodes = await socketInodesOf(pid);
  const rows = (await readFile(`/proc/${pid}/net/tcp`, 'utf8')).trim().split('\n').slice(1);
  return rows.flatMap((row) => {
    const [, local, , state, , , , , , inode] = row.trim().split(/\s+/);
    return state === listening && inodes.has(inode!) ? [originOf(local!)] : [];
  });
}

/** @param local as the kernel writes it: the address as a number in this machine's byte order, then the port. */
function originOf(local: string): string {
  const [address, port] = local.split(':');
  const bytes = [...Buffer.from(address!, 'hex')].reverse();
  return `http://${bytes.join('.')}:${Number.parseInt(port!, 16)}`;
}

async function socketInodesOf(pid: number): Promise<Set<string>> {
  const dir = `/proc/${pid}/fd`;
  const links = await Promise.all(
    (await readdir(dir)).map((name) => readlink(`${dir}/${name}`).catch(() => '')),
  );
  return new Set(links.flatMap((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1] ?? []));
}
