// Rows of the failure matrix of snapshots in a store, in real VMs: edited objects, a herd on one cold snapshot, a pager
// that is killed. One node makes the snapshots, another one, which has none of them, meets the failures.
import assert from 'node:assert/strict';
import { readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import type { Sandbox } from 'e2b';
import { pathsOf } from '../../pool/host/paths.ts';
import { eventually, type ThawProcess } from './thaw-process.ts';

export interface StoredWorld {
  /** Its snapshots are in the store. */
  maker(): ThawProcess;
  start(env: NodeJS.ProcessEnv): Promise<ThawProcess>;
  create(thaw: ThawProcess, template: string): Promise<Sandbox>;
  stored(thaw: ThawProcess, snapshotId: string): Promise<{ storedBytes: number }>;
  /** What the store has sent so far. */
  answers(): { answers: number; bytesDown: number };
  storeDir(): string;
}

const herd = 12;
const endsWithinMs = 1_000;

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
    for (let left = 4; left > 0; left--) {
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
    node = await world.start({ THAW_MAX_CONCURRENT_RESTORES: '3' });
  });
  after(() => node?.end());

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

  it('row 14: a herd on one cold snapshot fetches it once; who finds no room is told when to come back', async (t) => {
    const { snapshotId } = cold[2]!;
    const wholeBytes = (await Promise.all((await segments()).map((path) => stat(path)))).reduce(
      (sum, { size }) => sum + size,
      0,
    );
    const { bytesDown } = world.answers();
    const answers = await Promise.all(Array.from({ length: herd }, () => create(snapshotId)));
    const good = answers.filter(({ status }) => status === 201);
    for (const answer of answers.filter(({ status }) => status !== 201)) {
      assert.ok([429, 503].includes(answer.status), await answer.clone().text());
      assert.ok(Number(answer.headers.get('retry-after')) > 0);
    }
    herdIds = await Promise.all(good.map(idOf));
    const fetchedBytes = world.answers().bytesDown - bytesDown;
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

async function baseIsWhole({ dataDir }: ThawProcess): Promise<boolean> {
  const { snapshotsDir } = pathsOf(dataDir);
  for (const name of await readdir(snapshotsDir)) {
    const text = await readFile(join(snapshotsDir, name, 'snapshot.json'), 'utf8').catch(() => '{}');
    const { kind, form } = JSON.parse(text) as { kind?: string; form?: string };
    if (kind === 'template' && form === 'whole') return true;
  }
  return false;
}

/** Turns a bit over in every stretch of it. */
async function spoil(path: string): Promise<void> {
  const bytes = await readFile(path);
  const everyBytes = Math.min(4096, Math.floor(bytes.length / 2));
  for (let at = everyBytes; at < bytes.length; at += everyBytes) bytes[at]! ^= 1;
  await writeFile(path, bytes);
}
