// The memory of snapshots that are in the store, by a real pager and a real mount: what its holders see of both.
import assert from 'node:assert/strict';
import { type ChildProcess, execFile } from 'node:child_process';
import { access, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';
import type { ThawError } from '../../shared/errors.ts';
import { silentLog as log } from '../../shared/log.ts';
import { snapshotFilesIn } from '../host/paths.ts';
import type { SnapshotRecord } from '../snapshot/record.ts';
import type { Recording, WorkingSet } from '../snapshot/working-set.ts';
import { canMountFuse, mountsOn } from './fuse-mount.ts';
import { testImage } from './image-for-tests.ts';
import { PagedMemory, type PagedMemoryOptions } from './paged-memory.ts';
import type { PagerClient } from './pager-client.ts';
import type { TestManifest } from './pager-for-tests.ts';
import { endPager, openPager, type PagerProcessOptions } from './pager-process.ts';

const run = promisify(execFile);
const ability = await canMountFuse();
const pages = 512;
const mayMount = process.getuid?.() === 0 ? {} : { skip: 'mounting a small file system takes root' };

describe('memory that a pager serves', { skip: ability.ok ? false : ability.reason }, () => {
  let dir: string;
  let pagerOptions: PagerProcessOptions;
  let paged: PagedMemory;
  let opened: PagerClient[];
  let kept: string[];
  let recorded: Recording[];
  let missed: Recording[];
  let workingSet: WorkingSet | undefined;
  let losses: string[];

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-paged-'));
    [opened, kept, recorded, missed, losses, workingSet] = [[], [], [], [], [], undefined];
    open({});
    await writeFile(join(dir, 'expected'), testImage(pages).content);
  });
  afterEach(async () => {
    await paged.close();
    assert.equal(await mountsOn(pagerOptions.mountDir), 0, 'nothing stays mounted');
    assert.equal(await livingPager(), undefined, 'no pager is left');
    await rm(dir, { recursive: true, force: true });
  });

  function open(settings: Record<string, unknown>, more: Partial<PagedMemoryOptions> = {}): void {
    pagerOptions = {
      dir: join(dir, 'pager'),
      mountDir: join(dir, 'mnt'),
      program: join(import.meta.dirname, 'pager-for-tests.ts'),
      settings,
      log,
    };
    paged = new PagedMemory({
      openPager: async () => {
        const { client } = await openPager(pagerOptions);
        opened.push(client);
        return client;
      },
      endPager: () => endPager(pagerOptions),
      keptDir: join(dir, 'kept'),
      log,
      workingSetOf: async () => workingSet,
      onRecorded: async (_, recording) => void recorded.push(recording),
      onMissed: async (_, misses) => void missed.push(misses),
      onKept: async (_, keptPath) => void kept.push(keptPath),
      onLost: (detail) => losses.push(detail),
      ...more,
    });
  }

  async function recordOf(number: number, manifest: Partial<TestManifest> = {}): Promise<SnapshotRecord> {
    const snapshotId = `snap-${String(number).padStart(24, '0')}`;
    const snapshotDir = join(dir, snapshotId);
    await mkdir(snapshotDir, { recursive: true });
    await writeFile(snapshotFilesIn(snapshotDir).manifestPath, JSON.stringify({ pages, ...manifest }));
    return { snapshotId, memoryMb: (pages * 4096) / (1024 * 1024), dir: snapshotDir } as SnapshotRecord;
  }

  const check = (path: string) => run('cmp', [path, join(dir, 'expected')]);
  const filesOf = async () => (await opened.at(-1)!.stats()).files;
  const pidOf = async () =>
    (JSON.parse(await readFile(join(pagerOptions.dir, 'vmm.pid'), 'utf8')) as { pid: number }).pid;
  async function livingPager(): Promise<number | undefined> {
    const pid = await pidOf().catch(() => 0);
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ') Z');
    return stat.split(') ')[1]!.startsWith('Z') ? undefined : pid;
  }
  async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
    const endMs = performance.now() + 5_000;
    while (!(await holds())) {
      assert.ok(performance.now() < endMs, what);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  /** A process that maps the file as a VMM does. */
  async function mapping(path: string): Promise<{ child: ChildProcess; ended: Promise<unknown> }> {
    const script = `import mmap, os, sys
m = mmap.mmap(os.open(${JSON.stringify(path)}, os.O_RDWR), 0, flags=mmap.MAP_PRIVATE, prot=3)
print(m[0], flush=True)
sys.stdin.readline()`;
    const child = execFile('python3', ['-c', script]);
    const ended = new Promise((resolve) => child.once('exit', (_, signal) => resolve(signal)));
    await new Promise((touched) => child.stdout?.once('data', touched));
    return { child, ended };
  }

  it('is one file for all who lease it, and dropped when nobody does', async () => {
    const record = await recordOf(1);
    const [a, b] = await Promise.all([paged.lease(record), paged.lease(record)]);
    assert.equal(a.path, b.path);
    await check(a.path);
    a.release();
    a.release();
    assert.equal((await filesOf()).length, 1, 'the other one still holds it');
    b.release();
    await until('it is dropped', async () => (await filesOf()).length === 0);
    await until('all that came of it goes, too', async () => (await readdir(join(dir, 'kept'))).length === 0);
    const again = await paged.lease(record);
    await check(again.path);
    again.release();
  });

  it('stays until the kernel has closed it, and can be had again at once', async () => {
    const record = await recordOf(1);
    const lease = await paged.lease(record);
    const { child, ended } = await mapping(lease.path);
    lease.release();
    const next = paged.lease(record);
    child.kill('SIGKILL');
    await ended;
    await check((await next).path);
    (await next).release();
  });

  it('is fetched while a clone is expected', async () => {
    workingSet = { imagePages: pages, recordings: [[{ page: 0, pageCount: 64 }]] };
    const record = await recordOf(1);
    paged.expect({ ...record, manifestPath: snapshotFilesIn(record.dir).manifestPath });
    await until('its pages come', async () => ((await opened[0]?.stats())?.cacheBytes ?? 0) > 0);
    const lease = await paged.lease(record);
    assert.equal((await filesOf()).length, 1);
    lease.release();
  });

  it('is had after all when the manifest moved before an expectation was met', async () => {
    const record = await recordOf(1);
    paged.expect({ ...record, manifestPath: join(dir, 'moved', 'manifest') });
    const lease = await paged.lease(record);
    await check(lease.path);
    lease.release();
  });

  it('is recorded for its first clone, and then kept whole', async () => {
    const record = await recordOf(1);
    const lease = await paged.lease(record);
    await run('head', ['-c', '4096', lease.path]);
    lease.answered();
    lease.answered();
    await until('it is kept', async () => kept.length === 1);
    assert.equal(recorded.length, 1);
    assert.equal(recorded[0]![0]!.page, 0);
    await check(kept[0]!);
    assert.equal(await paged.keep(record), kept[0]);
    lease.release();
    await until('the kept file goes, too', async () =>
      access(kept[0]!).then(
        () => false,
        () => true,
      ),
    );
  });

  it('tells what a clone needed that its working set did not name, though its node ends at once', async () => {
    workingSet = { imagePages: pages, recordings: [[{ page: 0, pageCount: 16 }]] };
    const lease = await paged.lease(await recordOf(1));
    await run('dd', [`if=${lease.path}`, 'of=/dev/null', 'bs=4096', 'skip=400', 'count=1']);
    lease.answered();
    await paged.close();
    open({});
    assert.ok(missed[0]?.some(({ page, pageCount }) => page <= 400 && 400 < page + pageCount));
    assert.equal(recorded.length, 0);
  });

  it('is kept also when its clone has ended, and not before its request had the store for itself', async () => {
    open({}, { restAfterMs: 200 });
    const lease = await paged.lease(await recordOf(1));
    const startMs = performance.now();
    lease.answered();
    lease.release();
    await until('it is kept', async () => kept.length === 1);
    assert.ok(performance.now() - startMs >= 200);
    await until('it is dropped', async () => (await filesOf()).length === 0);
  });

  it('is kept by whoever asks, without a clone', async () => {
    const record = await recordOf(1);
    const [a, b] = await Promise.all([paged.keep(record), paged.keep(record)]);
    assert.equal(a, b);
    assert.equal(kept.length, 1);
  });

  it('row 5: what cannot be fetched whole is a typed error for who asked for it', async () => {
    const record = await recordOf(1, { failing: 'store-unavailable' });
    await assert.rejects(paged.keep(record), { code: 'store-unavailable' });
    await until('it is dropped', async () => (await filesOf()).length === 0);
  });

  it(
    'row 13: a disk too full for the plain file is a typed error, each time, and the pages are served',
    mayMount,
    async () => {
      const keptDir = join(dir, 'kept');
      await mkdir(keptDir);
      await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', keptDir]);
      try {
        const record = await recordOf(1);
        const lease = await paged.lease(record);
        await assert.rejects(paged.keep(record), /ENOSPC/);
        await assert.rejects(paged.keep(record), { code: 'no-space' });
        await check(lease.path);
        lease.release();
        await until('it is dropped', async () => (await filesOf()).length === 0);
      } finally {
        await run('umount', ['--lazy', keptDir]);
      }
    },
  );

  it('row 7: a damaged page tells every holder why its VM must end, also one who listens late', async () => {
    const record = await recordOf(1, { failing: 'snapshot-damaged' });
    const lease = await paged.lease(record);
    const told: ThawError[] = [];
    lease.onFailure((failure) => told.push(failure));
    await assert.rejects(run('head', ['-c', '4096', lease.path]));
    await until('it is told', async () => told.length > 0);
    assert.equal(told[0]!.code, 'snapshot-damaged');
    assert.equal(lease.failure?.code, 'snapshot-damaged');
    lease.onFailure((failure) => told.push(failure));
    assert.equal(told.at(-1)?.code, 'snapshot-damaged');
    lease.release();
  });

  it('row 9: a pager that is killed is told to every holder within a second, and replaced at the next lease', async () => {
    const records = await Promise.all([recordOf(1), recordOf(2)]);
    const leases = await Promise.all([...records, records[0]!].map((record) => paged.lease(record)));
    const told: string[] = [];
    for (const lease of leases) lease.onFailure(({ code }) => told.push(code));
    const { child, ended } = await mapping(leases[0]!.path);
    const killed = await pidOf();
    const startMs = performance.now();
    process.kill(killed, 'SIGKILL');
    await until('all are told', async () => told.length === 3);
    assert.ok(performance.now() - startMs < 1_000);
    assert.deepEqual(new Set(told), new Set(['pager-lost']));
    assert.equal(losses.length, 1);
    const late: string[] = [];
    leases[0]!.onFailure(({ code }) => late.push(code));
    assert.deepEqual(late, ['pager-lost']);
    const next = await paged.lease(records[0]!);
    assert.notEqual(await pidOf(), killed);
    await check(next.path);
    for (const lease of leases) lease.release();
    assert.deepEqual(
      (await filesOf()).map(({ snapshotId }) => snapshotId),
      [records[0]!.snapshotId],
      'releases of the lost ones take nothing from the new one',
    );
    assert.equal(next.failure, undefined);
    next.release();
    child.kill('SIGKILL');
    await ended;
  });

  it('row 9: who waits for all of it hears of the loss at once', async () => {
    open({ delayMs: 300 });
    const keeping = paged.keep(await recordOf(1));
    await until('it is fetched', async () => ((await opened[0]?.stats())?.fetchesInFlight ?? 0) > 0);
    process.kill(await pidOf(), 'SIGKILL');
    await assert.rejects(keeping, { code: 'pager-lost' });
  });

  it('says why a pager cannot be had, and tries again at the next lease', async () => {
    let fails = true;
    const openNow = async () => {
      if (fails) throw new Error('no pager today');
      const { client } = await openPager(pagerOptions);
      opened.push(client);
      return client;
    };
    open({}, { openPager: openNow });
    const record = await recordOf(1);
    await assert.rejects(paged.lease(record), /no pager today/);
    fails = false;
    const lease = await paged.lease(record);
    await check(lease.path);
    lease.release();
  });

  it('ends its pager for sure, also while a file of it is mapped and somebody waits for all of it', async () => {
    open({ delayMs: 200 });
    const record = await recordOf(1);
    const lease = await paged.lease(record);
    const { child, ended } = await mapping(lease.path);
    const keeping = assert.rejects(paged.keep(record), { code: 'pager-lost' });
    await until('it is fetched', async () => ((await opened[0]!.stats()).fetchesInFlight ?? 0) > 0);
    await paged.close();
    await keeping;
    assert.equal(await livingPager(), undefined);
    assert.equal(await mountsOn(pagerOptions.mountDir), 0);
    await assert.rejects(paged.lease(record), { code: 'pager-lost' });
    child.kill('SIGKILL');
    await ended;
  });
});
