// Owns a pager program for tests that is at its worst: the kernel waits for a page that it never serves, and its pushing
// thread waits in the kernel for that page's lock. Says `stuck` when both are so. Argument: where to mount.
import { readdirSync, readFileSync } from 'node:fs';
import { silentLog } from '../../shared/log.ts';
import { pageBytes } from '../snapshot/extents.ts';
import { FileTree } from './file-tree.ts';
import { mountFuse } from './fuse-mount.ts';
import { FuseSession } from './fuse-session.ts';
import { PagePusher } from './page-pusher.ts';

const device = await mountFuse(process.argv[2]!);
const tree = new FileTree();
const limits = { maxReadaheadBytes: pageBytes, maxReadBytes: pageBytes, maxBackground: 1 };
const session = new FuseSession({ fd: device.fd, handler: tree, log: silentLog, readers: 1, limits });
const pusher = new PagePusher(device.fd);
const nodeId = tree.add('pages', {
  sizeBytes: pageBytes,
  onWriteRefused: () => {},
  readRange: () => {
    void pusher.push(nodeId, [{ offsetBytes: 0, bytes: Buffer.alloc(pageBytes) }]);
    const looking = setInterval(() => {
      if (!waitsForPage()) return;
      clearInterval(looking);
      process.stdout.write('stuck\n');
    }, 10);
    return new Promise(() => {});
  },
});
await session.ready;
process.stdout.write('mounted\n');

/** In the kernel, where no signal reaches it. */
function waitsForPage(): boolean {
  const tasks = `/proc/${process.pid}/task`;
  return readdirSync(tasks).some((task) => readFileSync(`${tasks}/${task}/stat`, 'utf8').includes(') D '));
}
