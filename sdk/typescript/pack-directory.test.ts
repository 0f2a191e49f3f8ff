import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, before, describe, it } from 'node:test';
import { extract, type Header } from 'tar-stream';
import { InvalidRequestError } from './errors.ts';
import { packDirectory } from './pack-directory.ts';

let directory: string;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'thaw-pack-'));
});
after(() => rm(directory, { recursive: true, force: true }));

async function entriesOf(archive: Blob): Promise<Map<string, { header: Header; text: string }>> {
  const entries = new Map<string, { header: Header; text: string }>();
  const reader = Readable.from(Buffer.from(await archive.arrayBuffer())).pipe(extract());
  for await (const entry of reader) {
    let text = '';
    for await (const chunk of entry) text += chunk;
    entries.set(entry.header.name, { header: entry.header, text });
  }
  return entries;
}

describe('a packed directory', () => {
  it('holds files, directories and links, with names of any length', async () => {
    const root = join(directory, 'shop');
    const long = `${'ä'.repeat(60)}/${'b'.repeat(120)}`;
    await mkdir(join(root, '.git'), { recursive: true });
    await mkdir(join(root, 'ä'.repeat(60)), { recursive: true });
    await writeFile(join(root, '.git/config'), 'x');
    await writeFile(join(root, long), 'deep');
    await writeFile(join(root, 'run.sh'), '#!/bin/sh\n', { mode: 0o755 });
    await writeFile(join(root, 'exact'), 'x'.repeat(512));
    await symlink('run.sh', join(root, 'link'));
    await symlink('c'.repeat(150), join(root, 'far'));
    const { name, archive } = await packDirectory(root);
    assert.equal(name, 'shop');
    const entries = await entriesOf(archive);
    assert.deepEqual(
      [...entries.keys()].sort(),
      [`${'ä'.repeat(60)}/`, 'exact', 'far', 'link', long, 'run.sh'].sort(),
    );
    assert.equal(entries.get(long)!.text, 'deep');
    assert.equal(entries.get('exact')!.text.length, 512);
    assert.equal(entries.get('run.sh')!.header.mode, 0o755);
    assert.equal(entries.get('link')!.header.linkname, 'run.sh');
    assert.equal(entries.get('far')!.header.linkname, 'c'.repeat(150));
    const again = await packDirectory(root);
    assert.deepEqual(await archive.arrayBuffer(), await again.archive.arrayBuffer(), 'the same bytes again');
  });

  it('is named by the caller, else by thaw.json, else by itself', async () => {
    const root = join(directory, 'named');
    await mkdir(root);
    await writeFile(join(root, 'thaw.json'), '{"name":"from-manifest"}');
    assert.equal((await packDirectory(root)).name, 'from-manifest');
    assert.equal((await packDirectory(root, 'given')).name, 'given');
    await writeFile(join(root, 'thaw.json'), '{broken');
    assert.equal((await packDirectory(root)).name, 'named');
  });

  it('refuses what is no file', async () => {
    const root = join(directory, 'odd');
    await mkdir(root);
    const { createServer } = await import('node:net');
    const server = createServer().listen(join(root, 'socket'));
    await new Promise((resolve) => server.once('listening', resolve));
    await assert.rejects(packDirectory(root), InvalidRequestError);
    server.close();
  });
});
