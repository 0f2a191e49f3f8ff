// Tests listings that are long, deep, or of directories that change while they are read, on a real agent process.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';
import { AgentFixture } from './agent-fixture.ts';
import { EntryReader, isLocal } from './entry-info.ts';

let agent: AgentFixture;
before(async () => {
  agent = await AgentFixture.start();
});
after(() => agent?.[Symbol.asyncDispose]());

const fresh = () => mkdtemp(join(agent.rootDir, 'listed-'));
const nobody = { find: () => undefined, userName: String, groupName: String };

async function list(path: string, depth = 1): Promise<{ name: string; type: string }[]> {
  const { status, body } = await agent.unary('filesystem.Filesystem/ListDir', { path, depth });
  assert.equal(status, 200, JSON.stringify(body).slice(0, 300));
  return (body as { entries?: { name: string; type: string }[] }).entries ?? [];
}

async function fill(path: string, count: number): Promise<string[]> {
  const names = Array.from({ length: count }, (_, index) => `entry-${String(index).padStart(5, '0')}`);
  for (let at = 0; at < count; at += 200)
    await Promise.all(names.slice(at, at + 200).map((name) => writeFile(join(path, name), '')));
  return names;
}

/** Removes what is below `path` and makes it again, over and over, on a thread of its own, until it is ended. */
const churn = (path: string, names: string[]) =>
  new Worker(
    `const { mkdirSync, rmSync, writeFileSync } = require('node:fs');
     const { parentPort, workerData: { path, names } } = require('node:worker_threads');
     for (let round = 0; ; round++) {
       for (const name of names) {
         rmSync(path + '/' + name, { recursive: true, force: true });
         if (round % 2) writeFileSync(path + '/' + name, '');
         else { mkdirSync(path + '/' + name); writeFileSync(path + '/' + name + '/below', ''); }
       }
       if (round === 0) parentPort.postMessage('begun');
     }`,
    { eval: true, workerData: { path, names } },
  );

describe('filesystem.Filesystem/ListDir', () => {
  it('lists 10,000 entries, each once and in order', async () => {
    const path = await fresh();
    const names = await fill(path, 10_000);
    assert.deepEqual(
      (await list(path)).map(({ name }) => name),
      names,
    );
    const { files } = await agent.client();
    assert.equal((await files.list(path)).length, 10_000);
  });

  it('lists a name whose target is gone', async () => {
    const path = await fresh();
    await symlink('/nowhere/at/all', join(path, 'dangling'));
    await writeFile(join(path, 'there'), '');
    const found = (await list(path)).map(({ name, type }) => [name, type]);
    assert.deepEqual(found, [
      ['dangling', 'FILE_TYPE_SYMLINK'],
      ['there', 'FILE_TYPE_FILE'],
    ]);
  });

  it('lists what stays while the rest comes and goes', async () => {
    const path = await fresh();
    const staying = await fill(path, 300);
    const churning = churn(
      path,
      Array.from({ length: 40 }, (_, index) => `a-${index}`),
    );
    try {
      await once(churning, 'message');
      for (let count = 0; count < 40; count++) {
        const found = new Set((await list(path, 3)).map(({ name }) => name));
        assert.deepEqual(
          staying.filter((name) => !found.has(name)),
          [],
        );
      }
    } finally {
      await churning.terminate();
    }
  });

  it('says so when the directory itself is gone', async () => {
    const path = await fresh();
    await rm(path, { recursive: true });
    const { body } = await agent.unary('filesystem.Filesystem/ListDir', { path });
    assert.equal(body.code, 'not_found');
  });
});

describe('the reader of entries', () => {
  it('tells of the others when one vanishes between two questions', async () => {
    const path = await fresh();
    await mkdir(join(path, 'there'));
    await writeFile(join(path, 'gone'), '');
    const vanishing: typeof isLocal = async (asked) => {
      if (asked.endsWith('gone')) rmSync(asked);
      return await isLocal(asked);
    };
    const entries = new EntryReader(nobody, vanishing);
    const [gone, there] = await Promise.allSettled([
      entries.read(join(path, 'gone')),
      entries.read(join(path, 'there')),
    ]);
    assert.equal((gone as PromiseRejectedResult).reason.code, 'ENOENT');
    assert.equal(there.status, 'fulfilled');
    assert.equal(((await entries.read(join(path, 'there'))) as { name: string }).name, 'there');
  });
});
