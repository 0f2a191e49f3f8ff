// Rows of the failure matrix of snapshots in a store, in real VMs: edited objects, a slow store, a herd on one cold
// snapshot, a pager that is killed, a disk that fills up. One node makes the snapshots, another one, which has none of
// them, meets the failures.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readdir, readFile, stat, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import { promisify } from 'node:util';
import type { Sandbox } from 'e2b';
import { pathsOf } from '../../pool/host/paths.ts';
import type { SnapshotRecord } from '../../pool/snapshot/record.ts';
import type { FaultProxy } from '../../pool/store/fault-proxy-for-tests.ts';
import { snapshotIdPattern } from '../../shared/ids.ts';
import { eventually, type ThawProcess } from './thaw-process.ts';

export interface StoredWorld {
  /** Its snapshots are in the store. */
  maker(): ThawProcess;
  /** @param prepare what to do with its data directory before. */
  start(env: NodeJS.ProcessEnv, prepare: (dataDir: string) => Promise<unknown>): Promise<ThawProcess>;
  create(thaw: ThawProcess, template: string): Promise<Sandbox>;
  stored(thaw: ThawProcess, snapshotId: string): Promise<{ storedBytes: number }>;
  /** Before the store. */
  proxy(): FaultProxy;
  storeDir(): string;
}

const run = promisify(execFile);
const mayMount = process.getuid?.() === 0;
const herd = 12;
const endsWithinMs = 1_000;
const slowFirstByteMs = 200;
/** Of a create whose pages do not come: a read's own, twice, since a restore is tried twice; and what the VMs take. */
const stalledWithinMs = 45_000;

export function storedFailureRows(world: StoredWorld): void {
  describe('rows of the failure matrix of snapshots in a store', () => rows(world));
}

function rows(world: StoredWorld): void {
  let node: ThawProcess;
  /** As the store has them; nobody has restored them yet. */
  const cold: { snapshotId: string; segments: string[] }[] = [];
  let herdIds: string[] = [];

  const segments = async () => {
    const found = await readdir(join(world.storeDir(), 'segments'), { recursive: true, withFileTypes: true });
    return found.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  };
  const post = (path: string, body: object) =>
    node.call(path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
  const create = (templateID: string) => post('/v2/sandboxes', { templateID, timeout: 600 });
  const idOf = async (answer: Response) => ((await answer.json()) as { sandboxID: string }).sandboxID;
  const isGone = async (sandboxId: string) => (await node.call(`/sandboxes/${sandboxId}`)).status === 404;
  const logOf = () => readFile(join(node.dataDir, 'thaw.log'), 'utf8');

  before(async () => {
    const maker = world.maker();
    const sandbox = await world.create(maker, 'base');
    for (let left = 7; left > 0; left--) {
      await sandbox.commands.run(
        `head -c 1000000 /dev/urandom > /dev/shm/${left}; echo ${left} > made; sync`,
      );
      const known = await segments();
      const { snapshotId } = await sandbox.createSnapshot();
      await world.stored(maker, snapshotId);
      const own = (await segments()).filter((path) => !known.includes(path));
      cold.push({ snapshotId, segments: own });
    }
    await sandbox.kill();
    // On a disk of its own, which can be made too small.
    const env = { THAW_MAX_CONCURRENT_RESTORES: '3', THAW_MIN_FREE_DISK_MB: '0' };
    node = await world.start(env, async (dataDir) => {
      if (mayMount) await run('mount', ['-t', 'tmpfs', '-o', 'size=4g', 'tmpfs', dataDir]);
    });
  });
  after(async () => {
    await node?.end();
    if (mayMount && node) await run('umount', ['--lazy', node.dataDir]);
  });

  async function isRefused(context: TestContext, snapshotId: string, detail: RegExp): Promise<void> {
    const vmms = await node.vmmPids();
    const answer = await create(snapshotId);
    const text = await answer.text();
    assert.equal(answer.status, 500, text);
    assert.equal(answer.headers.get('x-thaw-error'), 'snapshot-damaged', text);
    assert.match(text, detail);
    assert.deepEqual(await node.vmmPids(), vmms, 'no VM of it is left');
    const left = async () =>
      (await readdir(join(node.dataDir, 'snapshots'))).filter((name) => name.startsWith(snapshotId));
    // Parts that were verified may stay; half of one may not.
    await eventually(
      'what is half there is gone',
      async () => !(await left()).some((name) => name.endsWith('.partial')),
      2_000,
    );
    context.diagnostic(`left of it: ${(await left()).join(', ') || 'nothing'}`);
  }

  it('row 8: a manifest that was edited is refused with a typed error, and no VM is made', async (context) => {
    const { snapshotId } = cold[0]!;
    await spoil(join(world.storeDir(), 'manifests', snapshotId));
    await isRefused(context, snapshotId, /snap/);
    assert.match(await logOf(), /a manifest was refused/);
  });

  it('row 7: a segment that was edited is refused with a typed error, and no VM is made', async (context) => {
    const { snapshotId, segments: own } = cold[1]!;
    assert.ok(own.length > 0);
    for (const path of own) await spoil(path);
    await isRefused(context, snapshotId, /frame|segment/);
  });

  it('row 6: a restore from a slow store takes its time and answers; from one that stops it ends with a typed error, and leaves no VM', async (t) => {
    const vmms = await node.vmmPids();
    const timed = async (id: string) => {
      const startMs = performance.now();
      const answer = await create(id);
      return { answer, tookMs: Math.round(performance.now() - startMs) };
    };
    try {
      world.proxy().set({ firstByteDelayMs: slowFirstByteMs });
      const slow = await timed(cold[4]!.snapshotId);
      assert.equal(slow.answer.status, 201, await slow.answer.clone().text());
      world.proxy().set({ firstByteDelayMs: 20 });
      await eventually('all of it has come', () => isWhole(node, cold[4]!.snapshotId));
      await node.call(`/sandboxes/${await idOf(slow.answer)}`, { method: 'DELETE' });
      world.proxy().set({ firstByteDelayMs: slowFirstByteMs });
      const creating = timed(cold[6]!.snapshotId);
      const dir = pathsOf(node.dataDir).snapshotDir(cold[6]!.snapshotId);
      await eventually('all but its memory has come', () => stat(dir).catch(() => false as const));
      world.proxy().set({ stall: true });
      const [midway, nothing] = await Promise.all([creating, timed(cold[5]!.snapshotId)]);
      t.diagnostic(`slow: ${slow.tookMs} ms`);
      for (const { answer, tookMs } of [midway, nothing]) {
        t.diagnostic(`stopped: ${answer.status} after ${tookMs} ms, ${await answer.clone().text()}`);
        assert.ok([503, 504].includes(answer.status));
        assert.ok(tookMs < stalledWithinMs, `${tookMs} ms`);
      }
    } finally {
      world.proxy().set({ firstByteDelayMs: 20 });
    }
    await eventually('no VM of them is left', async () => (await node.vmmPids()).length === vmms.length);
    const next = await eventually('the store is asked again', async () => {
      const answer = await create(cold[6]!.snapshotId);
      return answer.status === 201 && answer;
    });
    await node.call(`/sandboxes/${await idOf(next)}`, { method: 'DELETE' });
  });

  it('row 14: a herd on one cold snapshot fetches it once; who finds no room is told when to come back', async (t) => {
    const { snapshotId } = cold[2]!;
    const wholeBytes = (await Promise.all((await segments()).map((path) => stat(path)))).reduce(
      (sum, { size }) => sum + size,
      0,
    );
    const { bytesDown } = world.proxy();
    const answers = await Promise.all(Array.from({ length: herd }, () => create(snapshotId)));
    const good = answers.filter(({ status }) => status === 201);
    for (const answer of answers.filter(({ status }) => status !== 201)) {
      assert.ok([429, 503].includes(answer.status), await answer.clone().text());
      assert.ok(Number(answer.headers.get('retry-after')) > 0);
    }
    herdIds = await Promise.all(good.map(idOf));
    const fetchedBytes = world.proxy().bytesDown - bytesDown;
    t.diagnostic(
      `${good.length} of ${herd} got a VM; ${fetchedBytes} bytes came of ${wholeBytes} in the store`,
    );
    assert.ok(good.length > 0);
    // A read that is slow is asked again within a budget.
    assert.ok(fetchedBytes < 2 * wholeBytes, 'no frame came for each of them');
  });

  it('row 9: a pager that is killed takes its VMs with it within a second; others and the next restore do not notice', async (t) => {
    const { pagerDir, pagefsDir } = pathsOf(node.dataDir);
    const first = await world.create(node, 'base');
    await eventually('the base’s memory is here', () => baseIsWhole(node));
    await first.kill();
    await eventually('its VM has ended', async () => (await node.vmmPids()).length === herdIds.length);
    const other = await world.create(node, 'base');
    const pids = await node.vmmPids();
    const served = await mapping(pids, pagefsDir);
    assert.ok(served.length > 0 && served.length < pids.length, `${served.length} of ${pids.length}`);
    const pager = JSON.parse(await readFile(join(pagerDir, 'vmm.pid'), 'utf8')) as { pid: number };
    const startMs = performance.now();
    process.kill(pager.pid, 'SIGKILL');
    const gone = async () => (await Promise.all(herdIds.map(isGone))).filter(Boolean).length;
    await eventually('their sandboxes end', async () => (await gone()) === served.length, endsWithinMs);
    t.diagnostic(`${served.length} sandboxes ended after ${Math.round(performance.now() - startMs)} ms`);
    assert.match(await logOf(), /its pages could not be had: the pager is lost/);
    assert.equal((await other.commands.run('echo on')).stdout.trim(), 'on');
    const next = await create(cold[3]!.snapshotId);
    assert.equal(next.status, 201, await next.clone().text());
    const left = [other.sandboxId, await idOf(next), ...herdIds];
    await Promise.all(left.map((sandboxId) => node.call(`/sandboxes/${sandboxId}`, { method: 'DELETE' })));
    await eventually('every VM has ended', async () => (await node.vmmPids()).length === 0);
  });

  it('row 13: a disk that fills up is rid of what is in the store and not in use, and that is had again', {
    skip: mayMount ? false : 'mounting a small file system takes root',
  }, async (t) => {
    const isHere = async (id: string) =>
      ((await (await node.call(`/v1/snapshots/${id}`)).json()) as { here: boolean }).here;
    const resize = (size: string | number) => run('mount', ['-o', `remount,size=${size}`, node.dataDir]);
    const usage = async () => {
      const { blocks, bfree, bsize } = await statfs(node.dataDir);
      return { usedBytes: (blocks - bfree) * bsize, usedPercent: 100 * (1 - bfree / blocks) };
    };
    const counted = async (name: string) => {
      const text = await (await fetch(`${node.adminUrl}/metrics`)).text();
      return Number(new RegExp(`^${name}\\{kind="snapshot"\\} (.*)$`, 'm').exec(text)?.[1] ?? 0);
    };
    // The one that was used longest ago, and one with a VM.
    const idle = cold[4]!.snapshotId;
    assert.equal(await isHere(idle), true);
    const running = await world.create(node, cold[3]!.snapshotId);
    await eventually('nothing more comes', () => isWhole(node, cold[3]!.snapshotId));
    const { usedBytes } = await usage();
    try {
      await resize(Math.ceil(usedBytes / 0.95));
      await eventually('it is evicted', async () => !(await isHere(idle)));
      await eventually('there is room', async () => (await usage()).usedPercent < 81);
      const gone = [await counted('thaw_evictions_total'), await counted('thaw_evicted_bytes_total')];
      t.diagnostic(`${gone[0]} snapshots went, ${gone[1]} of ${usedBytes} bytes`);
      assert.ok(gone[0]! > 0 && gone[1]! > 10_000_000);
      assert.equal(await isHere(cold[3]!.snapshotId), true, 'one with a VM stays');
      assert.match(await logOf(), /evicted: the snapshot is in the store/);
      const back = await world.create(node, idle);
      assert.equal((await back.commands.run('cat made')).stdout.trim(), '3');
      await back.kill();
    } finally {
      await resize('4g');
    }
    assert.equal((await running.commands.run('echo on')).stdout.trim(), 'on');
    await running.kill();
    await eventually('every VM has ended', async () => (await node.vmmPids()).length === 0);
  });

  it('row 27: a fork of which one VM dies while it is made gives the others, and says which and why', async (t) => {
    const sandbox = await world.create(node, 'base');
    const known = await node.vmmPids();
    const forking = post(`/sandboxes/${sandbox.sandboxId}/fork`, { count: 3, timeout: 600 });
    const pid = await eventually('a fork is being made', async () =>
      (await node.vmmPids()).find((each) => !known.includes(each)),
    );
    process.kill(pid, 'SIGKILL');
    const answer = await forking;
    assert.equal(answer.status, 201);
    type Row = { sandbox?: { sandboxID: string }; error?: { code: number; message: string } };
    const forks = (await answer.json()) as Row[];
    assert.equal(forks.length, 3);
    const errors = forks.flatMap(({ error }) => (error ? [error] : []));
    t.diagnostic(`errors: ${JSON.stringify(errors)}`);
    for (const error of errors) assert.ok(error.code >= 500 && error.message !== '');
    const made = forks.flatMap((fork) => (fork.sandbox ? [fork.sandbox.sandboxID] : []));
    const gone = (await Promise.all(made.map(isGone))).filter(Boolean).length;
    assert.ok(errors.length + gone <= 1, 'one died, and no other with it');
    assert.equal((await sandbox.commands.run('echo on')).stdout.trim(), 'on');
    for (const id of [...made, sandbox.sandboxId]) await node.call(`/sandboxes/${id}`, { method: 'DELETE' });
    await eventually('every VM has ended', async () => (await node.vmmPids()).length === 0);
  });
}

/** Those of the processes that map a file in `dir`. */
async function mapping(pids: readonly number[], dir: string): Promise<number[]> {
  const maps = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/maps`, 'utf8').catch(() => '')));
  return pids.filter((_, index) => maps[index]!.includes(`${dir}/`));
}

async function recordOf({ dataDir }: ThawProcess, snapshotId: string): Promise<Partial<SnapshotRecord>> {
  const path = join(pathsOf(dataDir).snapshotDir(snapshotId), 'snapshot.json');
  return JSON.parse(await readFile(path, 'utf8').catch(() => '{}'));
}

const isWhole = async (node: ThawProcess, snapshotId: string): Promise<boolean> =>
  (await recordOf(node, snapshotId)).form === 'whole';

async function baseIsWhole(node: ThawProcess): Promise<boolean> {
  const names = await readdir(pathsOf(node.dataDir).snapshotsDir);
  const records = await Promise.all(
    names.filter((name) => snapshotIdPattern.test(name)).map((name) => recordOf(node, name)),
  );
  return records.some(({ kind, form }) => kind === 'template' && form === 'whole');
}

/** Turns a bit over in every stretch of it. */
async function spoil(path: string): Promise<void> {
  const bytes = await readFile(path);
  const everyBytes = Math.min(4096, Math.floor(bytes.length / 2));
  for (let at = everyBytes; at < bytes.length; at += everyBytes) bytes[at]! ^= 1;
  await writeFile(path, bytes);
}
