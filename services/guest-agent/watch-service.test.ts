// Tests watching by stream, by polling and by the real E2B client, on a real agent process.
import assert from 'node:assert/strict';
import { closeSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { appendFile, chmod, mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { AgentFixture, type StreamMessage } from './agent-fixture.ts';
import type { Caller } from './caller.ts';
import { DirectoryWatch } from './directory-watch.ts';
import { parseEvents } from './inotify.ts';
import { WatchTable } from './watch-service.ts';

let agent: AgentFixture;
before(async () => {
  agent = await AgentFixture.start();
});
after(() => agent?.[Symbol.asyncDispose]());

const fresh = () => mkdtemp(join(agent.rootDir, 'watched-'));
const service = 'filesystem.Filesystem';
const lastOf = (type: string, name: string) => (message: StreamMessage) =>
  message.filesystem?.type === `EVENT_TYPE_${type}` && message.filesystem.name === name;

/** Events as `TYPE name`, of the changes that `act` makes once the watch has started. */
async function watch(
  request: object,
  act: () => Promise<unknown>,
  last: (message: StreamMessage) => boolean,
): Promise<{ events: string[]; messages: StreamMessage[] }> {
  const { messages } = await agent.stream(`${service}/WatchDir`, request, {}, async (message) => {
    if (message.start) await act();
    return last(message);
  });
  assert.deepEqual(messages[0], { start: {} });
  const told = messages.slice(1).map(({ filesystem }) => filesystem);
  return { events: told.map(({ type, name }) => `${type.slice('EVENT_TYPE_'.length)} ${name}`), messages };
}

describe('filesystem.Filesystem/WatchDir', () => {
  it('tells what happens to entries, in order, with names relative to the directory', async () => {
    const path = await fresh();
    const act = async () => {
      await writeFile(join(path, 'a'), 'x');
      await chmod(join(path, 'a'), 0o600);
      await rename(join(path, 'a'), join(path, 'b'));
      await rm(join(path, 'b'));
      await mkdir(join(path, 'sub'));
      await writeFile(join(path, 'sub/below'), 'not told of');
      await writeFile(join(path, 'last'), '');
    };
    const { events } = await watch({ path }, act, lastOf('CREATE', 'last'));
    const expected = ['CREATE a', 'WRITE a', 'CHMOD a', 'RENAME a', 'CREATE b', 'REMOVE b', 'CREATE sub'];
    assert.deepEqual(events, [...expected, 'CREATE last']);
  });

  it('tells of the directory itself as a dot', async () => {
    const path = await fresh();
    const act = async () => {
      await chmod(path, 0o700);
      await rm(path, { recursive: true });
    };
    const { events } = await watch({ path }, act, lastOf('REMOVE', '.'));
    assert.deepEqual(events, ['CHMOD .', 'REMOVE .']);
  });

  it('follows directories that are made, moved in, moved about and moved out', async () => {
    const path = await fresh();
    const outside = await fresh();
    await mkdir(join(path, 'old/deep'), { recursive: true });
    await mkdir(join(outside, 'tree/leaf'), { recursive: true });
    const act = async () => {
      await appendFile(join(path, 'old/deep/f'), 'x');
      await mkdir(join(path, 'new/one/two'), { recursive: true });
      await writeFile(join(path, 'new/one/two/g'), 'x');
      await rename(join(path, 'old'), join(path, 'moved'));
      await appendFile(join(path, 'moved/deep/f'), 'y');
      await rename(join(outside, 'tree'), join(path, 'tree'));
      await rename(join(path, 'moved'), join(outside, 'moved'));
    };
    const moved = lastOf('RENAME', 'moved');
    const { events } = await watch({ path, recursive: true }, act, moved);
    for (const event of ['CREATE old/deep/f', 'WRITE old/deep/f', 'CREATE new', 'CREATE new/one'])
      assert.ok(events.includes(event), event);
    for (const event of ['CREATE new/one/two', 'CREATE new/one/two/g', 'RENAME old', 'CREATE moved'])
      assert.equal(events.filter((told) => told === event).length, 1, `${event} once in ${events}`);
    assert.ok(
      events.includes('WRITE moved/deep/f'),
      'a moved directory keeps being watched under its new name',
    );
    assert.ok(!events.includes('CREATE tree/leaf'), 'what was moved in with it was not created');

    const later = async () => {
      await writeFile(join(outside, 'moved/deep/gone'), 'x');
      await writeFile(join(path, 'tree/leaf/h'), 'x');
    };
    const after = await watch({ path, recursive: true }, later, lastOf('WRITE', 'tree/leaf/h'));
    assert.deepEqual(after.events, ['CREATE tree/leaf/h', 'WRITE tree/leaf/h']);
  });

  it('gives the entry where it is asked for and still there', async () => {
    const path = await fresh();
    const act = async () => {
      await writeFile(join(path, 'f'), 'four');
      await rm(join(path, 'f'));
      await symlink('/etc', join(path, 'link'));
      await writeFile(join(path, 'kept'), 'kept');
    };
    const { messages } = await watch({ path, includeEntry: true }, act, lastOf('WRITE', 'kept'));
    const entryOf = (type: string, name: string) => messages.find(lastOf(type, name)).filesystem.entry;
    assert.equal(entryOf('REMOVE', 'f'), undefined);
    const { name, type, size, path: full } = entryOf('WRITE', 'kept');
    assert.deepEqual([name, type, size, full], ['kept', 'FILE_TYPE_FILE', '4', join(path, 'kept')]);
    const link = entryOf('CREATE', 'link');
    assert.deepEqual([link.isSymlink, link.symlinkTarget, link.type], [true, '/etc', 'FILE_TYPE_DIRECTORY']);
  });

  it('refuses what cannot be watched, and ends at its deadline', async () => {
    const path = await fresh();
    await writeFile(join(path, 'file'), '');
    const codeOf = async (request: object) =>
      (await agent.stream(`${service}/WatchDir`, request)).end?.error?.code;
    assert.equal(await codeOf({ path: join(path, 'absent') }), 'not_found');
    assert.equal(await codeOf({ path: join(path, 'file') }), 'invalid_argument');
    assert.equal(await codeOf({ path, recursive: 'yes' }), 'invalid_argument');
    const headers = { 'connect-timeout-ms': '200', 'keepalive-ping-interval': '0.05' };
    const { messages, end } = await agent.stream(`${service}/WatchDir`, { path }, headers);
    assert.equal(end?.error?.code, 'deadline_exceeded');
    assert.deepEqual(messages[1], { keepalive: {} });
  });

  it('delivers every one of many events to a client that keeps up', async () => {
    const path = await fresh();
    const count = 2000;
    const files = Array.from({ length: count }, (_, index) => join(path, `f${index}`));
    const act = async () => {
      for (const file of files) await writeFile(file, '');
    };
    const { events } = await watch({ path }, act, lastOf('CREATE', `f${count - 1}`));
    assert.equal(events.length, count);
  });
});

describe('a directory watch', () => {
  it('says that events were lost once the kernel could not keep them', async () => {
    const path = await fresh();
    await using stack = new AsyncDisposableStack();
    const slow = await DirectoryWatch.open(path, false);
    stack.defer(() => slow.close());
    // Nobody reads: the kernel keeps 16,384 events at most by default. Two files in turn, or they would merge.
    const files = ['one', 'other'].map((name) => openSync(join(path, name), 'w'));
    for (let count = 0; count < 9000; count++) for (const file of files) writeSync(file, 'x');
    for (const file of files) closeSync(file);
    const readAll = () => {
      for (let events = slow.read(); events.length > 0; ) events = slow.read();
    };
    assert.throws(readAll, { code: 'resource_exhausted' });
    assert.throws(() => slow.read(), { code: 'resource_exhausted' }, 'and goes on saying so');
  });

  it("cuts the kernel's records apart", () => {
    const record = Buffer.alloc(32);
    record.writeInt32LE(7, 0);
    record.writeUInt32LE(0x4000_0100, 4);
    record.writeUInt32LE(9, 8);
    record.writeUInt32LE(16, 12);
    record.write('näme', 16);
    const parsed = { watch: 7, mask: 0x4000_0100, cookie: 9, name: 'näme' };
    const nameless = Buffer.alloc(16);
    assert.deepEqual(parseEvents(Buffer.concat([record, nameless, record])), [
      parsed,
      { watch: 0, mask: 0, cookie: 0, name: '' },
      parsed,
    ]);
    assert.deepEqual(parseEvents(record.subarray(0, 10)), []);
  });
});

describe('watchers that are asked', () => {
  const call = async (method: string, message: object) => await agent.unary(`${service}/${method}`, message);

  it('collect events between two questions, and are gone when removed', async () => {
    const path = await fresh();
    const { watcherId } = (await call('CreateWatcher', { path, recursive: true, includeEntry: true })).body;
    await mkdir(join(path, 'made'));
    const events: StreamMessage[] = [];
    const fetchAll = async () => {
      const { status, body } = await call('GetWatcherEvents', { watcherId });
      assert.equal(status, 200);
      events.push(...(body.events as unknown as StreamMessage[]));
    };
    const told = async (type: string, name: string) => {
      for (let found = false; !found; ) {
        await fetchAll();
        found = events.some((event) => event.type === `EVENT_TYPE_${type}` && event.name === name);
      }
    };
    await told('CREATE', 'made');
    await writeFile(join(path, 'made/file'), 'x');
    await told('WRITE', 'made/file');
    assert.equal(events.find(({ name }) => name === 'made').entry.type, 'FILE_TYPE_DIRECTORY');
    assert.deepEqual((await call('GetWatcherEvents', { watcherId })).body, { events: [] });
    assert.deepEqual(await call('RemoveWatcher', { watcherId }), { status: 200, body: {} });
    for (const method of ['GetWatcherEvents', 'RemoveWatcher'])
      assert.equal((await call(method, { watcherId })).body.code, 'not_found');
  });

  it('do not count as streams that ended', async () => {
    const path = await fresh();
    for (let count = 0; count < 80; count++)
      await agent.stream(`${service}/WatchDir`, { path }, {}, (message) => message.start);
  });
});

describe('the table of watchers', () => {
  const callerAt = (path: string): Caller => {
    const account = { name: 'x', uid: 0, gid: 0, home: path, groups: [], switches: false };
    const accounts = { find: () => account, userName: String, groupName: String };
    return { account, accounts, workdir: path };
  };
  const idOf = (answer: object) => answer as { watcherId: string };

  it('has a limit, and room again when one is removed', async () => {
    const table = new WatchTable({ maxWatches: 2 });
    const caller = callerAt(await fresh());
    const ids = [idOf(await table.createWatcher(caller, {})), idOf(await table.createWatcher(caller, {}))];
    await assert.rejects(table.createWatcher(caller, {}), { code: 'resource_exhausted' });
    table.removeWatcher(ids[0]!);
    ids.push(idOf(await table.createWatcher(caller, {})));
    for (const id of ids.slice(1)) table.removeWatcher(id);
  });

  it('keeps so many events, and then tells of those and that it lost the rest', async () => {
    const table = new WatchTable({ maxPendingEvents: 10 });
    const caller = callerAt(await fresh());
    const id = idOf(await table.createWatcher(caller, {}));
    for (let count = 0; count < 20; count++) writeFileSync(join(caller.workdir, `${count}`), '');
    const { events } = (await table.watcherEvents(id)) as { events: unknown[] };
    assert.ok(events.length > 10 && events.length <= 20, `${events.length}`);
    await assert.rejects(table.watcherEvents(id), { code: 'resource_exhausted' });
    table.removeWatcher(id);
    const next = idOf(await table.createWatcher(caller, {}));
    writeFileSync(join(caller.workdir, 'next'), '');
    assert.equal(((await table.watcherEvents(next)) as { events: unknown[] }).events.length, 1);
    table.removeWatcher(next);
  });
});

describe('the e2b client', () => {
  it('watches a tree, with entries, and stops', async () => {
    const { files } = await agent.client();
    await files.makeDir('tree');
    const events: { name: string; type: string; entry?: { path: string } }[] = [];
    let left = 0;
    const handle = await files.watchDir('tree', (event) => void events.push(event), {
      recursive: true,
      includeEntry: true,
      allowNetworkMounts: true,
      onExit: () => void left++,
    });
    await files.makeDir('tree/sub');
    await files.write('tree/sub/file', 'content');
    const found = (type: string, name: string) =>
      events.find((event) => event.type === type && event.name === name);
    await agent.eventually('a write told of', () => found('write', 'sub/file') !== undefined);
    assert.equal(found('create', 'sub')?.entry?.path, `${agent.rootDir}/home/tree/sub`);
    await files.remove('tree/sub/file');
    await agent.eventually('a removal told of', () => found('remove', 'sub/file') !== undefined);
    await handle.stop();
    await agent.eventually('the exit told of', () => left === 1);
    await assert.rejects(
      files.watchDir('absent', () => {}),
      { name: 'FileNotFoundError' },
    );
  });
});
