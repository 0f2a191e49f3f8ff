import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, before, describe, it } from 'node:test';
import { createGzip, gzipSync } from 'node:zlib';
import { extract, type Header, pack } from 'tar-stream';
import { ThawError } from '../../shared/errors.ts';
import { receiveBundle } from './bundle.ts';
import { gatewayDefaults } from './gateway-config.ts';

type Item = [Partial<Header> & { name: string }, (string | Buffer)?];

async function tarOf(...items: Item[]): Promise<Buffer> {
  const archive = pack();
  for (const [header, content] of items) archive.entry(header, content ?? '');
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive as unknown as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

const file = (name: string, content: string | Buffer = 'x'): Item => [{ name }, content];
const symlink = (name: string, linkname: string): Item => [{ name, type: 'symlink', linkname }];
const hardLink = (name: string, linkname: string): Item => [{ name, type: 'link', linkname }];

let bundleDir: string;
before(async () => {
  bundleDir = await mkdtemp(join(tmpdir(), 'thaw-bundles-'));
});
after(() => rm(bundleDir, { recursive: true, force: true }));

const receive = (upload: Buffer | Readable, over: Partial<typeof gatewayDefaults> = {}) =>
  receiveBundle(Buffer.isBuffer(upload) ? Readable.from(sliced(upload)) : upload, 'hello', {
    ...gatewayDefaults,
    bundleDir,
    ...over,
  });

/** Odd sizes, so that headers and the gzip magic are split between chunks. */
function* sliced(whole: Buffer): Generator<Buffer> {
  let at = 0;
  for (let size = 1; at < whole.length; size = Math.min(size * 3, 60_000)) {
    yield whole.subarray(at, at + size);
    at += size;
  }
}

async function entriesOf(path: string): Promise<Record<string, { header: Header; content: string }>> {
  const entries: Record<string, { header: Header; content: string }> = {};
  const reader = extract();
  reader.end(await readFile(path));
  for await (const entry of reader) {
    const chunks: Buffer[] = [];
    for await (const chunk of entry as AsyncIterable<Buffer>) chunks.push(chunk);
    entries[entry.header.name] = { header: entry.header, content: Buffer.concat(chunks).toString() };
  }
  return entries;
}

const refusedAs = (code: string, words: RegExp) => (error: unknown) => {
  assert.ok(error instanceof ThawError, `not a ThawError: ${error}`);
  assert.equal(error.code, code, error.message);
  assert.match(error.message, words);
  return true;
};

describe('bundle', () => {
  it('stores a plain tar named by its hash, equal for plain and compressed uploads made at other times', async () => {
    const items = (mtime: Date): Item[] => [
      [{ name: './', type: 'directory', mtime }],
      [{ name: './index.js', mtime, mode: 0o755, uid: 1000 }, 'export default {}'],
      [{ name: 'lib/', type: 'directory', mtime }],
      [{ name: 'lib/a.js', mtime }, 'a'],
      [{ name: 'lib/b.js', type: 'symlink', linkname: '../index.js', mtime }],
      [{ name: 'c.js', type: 'link', linkname: './lib/a.js', mtime }],
    ];
    const plain = await receive(await tarOf(...items(new Date(0))));
    const zipped = await receive(gzipSync(await tarOf(...items(new Date()))));
    assert.equal(plain.sha256, zipped.sha256);
    assert.equal(plain.path, join(bundleDir, `${plain.sha256}.tar`));
    assert.equal(plain.manifest.runtime, 'node');
    assert.equal(plain.manifest.entry, 'index.js');
    const entries = await entriesOf(plain.path);
    assert.deepEqual(Object.keys(entries).sort(), ['c.js', 'index.js', 'lib/', 'lib/a.js', 'lib/b.js']);
    assert.equal(entries['index.js']!.content, 'export default {}');
    assert.equal(entries['index.js']!.header.mode, 0o755);
    assert.equal(entries['index.js']!.header.uid, 0);
    assert.equal(entries['lib/b.js']!.header.linkname, '../index.js');
    assert.equal(entries['c.js']!.header.linkname, 'lib/a.js');
    assert.equal((await readFile(plain.path)).length, plain.sizeBytes);
  });

  it('reads thaw.json and holds it to the address and to the files', async () => {
    const withManifest = (manifest: unknown, ...rest: Item[]) =>
      tarOf(file('thaw.json', typeof manifest === 'string' ? manifest : JSON.stringify(manifest)), ...rest);
    const good = { name: 'hello', runtime: 'python', entry: 'web.py', memoryMb: 512 };
    assert.equal((await receive(await withManifest(good, file('web.py')))).manifest.memoryMb, 512);
    const cases: [unknown, Item[], RegExp][] = [
      ['{', [], /not JSON/],
      [{ ...good, name: 'other' }, [file('web.py')], /name: expected "hello"/],
      [{ ...good, memoryMB: 1 }, [file('web.py')], /memoryMB/],
      [{ ...good, memoryMb: 'big' }, [file('web.py')], /memoryMb/],
      [good, [], /entry: the bundle has no web\.py/],
      [{ name: 'hello', runtime: 'node' }, [file('main.py')], /no index\.js, index\.mjs, index\.ts/],
      [' '.repeat(70_000), [], /at most 65536/],
    ];
    for (const [manifest, rest, words] of cases)
      await assert.rejects(receive(await withManifest(manifest, ...rest)), refusedAs('bad-manifest', words));
    const linked = await tarOf(file('x.json', '{}'), symlink('thaw.json', 'x.json'));
    await assert.rejects(receive(linked), refusedAs('bad-manifest', /must be a file/));
  });

  it('says what it looked for when nothing tells what the bundle is', async () => {
    assert.equal((await receive(await tarOf(file('app.py')))).manifest.runtime, 'python');
    await assert.rejects(
      receive(await tarOf(file('readme.md'))),
      refusedAs('bad-manifest', /none of thaw\.json, index\.js, index\.mjs, index\.ts, main\.py, app\.py/),
    );
    await assert.rejects(
      receive(await tarOf(file('proj/index.js'))),
      refusedAs('bad-manifest', /everything is below "proj"/),
    );
  });

  it('refuses names and links that lead out', async () => {
    const cases: [string, Item[], RegExp][] = [
      ['parent', [file('../evil')], /'\.\.'/],
      ['inner parent', [file('a/../../evil')], /'\.\.'/],
      ['absolute', [file('/etc/passwd')], /absolute/],
      ['absolute link', [symlink('a', '/etc')], /absolute/],
      ['link out', [symlink('a', '../x')], /outside/],
      ['link out from below', [symlink('a/b', '../../x')], /outside/],
      ['link chain out', [symlink('d/e', '..'), symlink('x', 'd/e/..')], /outside/],
      ['later link chain out', [symlink('x', 'd/e/..'), symlink('d/e', '..')], /outside/],
      ['link circle', [symlink('a', 'b'), symlink('b', 'a')], /circle/],
      ['write through link', [symlink('a', 'b'), file('a/c')], /below "a", which is a symlink/],
      ['directory becomes link', [file('a/c'), symlink('a', 'b')], /twice/],
      ['file below file', [file('a'), file('a/b')], /below "a", which is a file/],
      ['file twice', [file('a'), file('./a')], /twice/],
      ['hard link out', [hardLink('a', '../../etc/shadow')], /'\.\.'/],
      ['hard link absolute', [hardLink('a', '/etc/shadow')], /absolute/],
      ['hard link to nothing', [hardLink('a', 'b')], /no earlier file/],
      ['hard link to a link', [file('f'), symlink('l', 'f'), hardLink('a', 'l')], /no earlier file/],
      ['device', [[{ name: 'a', type: 'character-device', devmajor: 1, devminor: 3 }]], /character-device/],
      ['pipe', [[{ name: 'a', type: 'fifo' }]], /fifo/],
      ['long segment', [file(`${'n'.repeat(256)}.js`)], /segment longer/],
      ['long path', [file(`${'d/'.repeat(600)}a`)], /longer than 1024/],
      ['nothing', [[{ name: 'empty/', type: 'directory' }]], /no files/],
    ];
    for (const [label, items, words] of cases)
      await assert.rejects(
        receive(
          await tarOf(file('index.js'), ...items).then((tar) =>
            label === 'nothing' ? tarOf(...items) : tar,
          ),
        ),
        refusedAs('bad-bundle', words),
        label,
      );
  });

  it('refuses a NUL that a pax header smuggles into a name', async () => {
    const tar = await tarOf(file('index.js'), [
      { name: 'a', pax: { path: 'ok\0/../../evil' } } as never,
      'x',
    ]);
    await assert.rejects(receive(tar), refusedAs('bad-bundle', /NUL/));
  });

  it('allows links that stay inside', async () => {
    const { path } = await receive(
      await tarOf(
        file('index.js'),
        file('pkg/bin.js'),
        symlink('node_modules/.bin/tool', '../../pkg/bin.js'),
        symlink('dangling', 'not/there'),
        symlink('up', 'pkg/..'),
      ),
    );
    assert.equal((await entriesOf(path)).dangling!.header.linkname, 'not/there');
  });

  it('refuses what is too large: as sent, unpacked, in entries', async () => {
    const noise = await tarOf(file('index.js'), file('data', randomBytes(200_000)));
    await assert.rejects(
      receive(noise, { maxBundleBytes: 100_000 }),
      refusedAs('body-too-large', /the upload is larger than the limit of 100000/),
    );
    const many = await tarOf(...Array.from({ length: 30 }, (_, at) => file(`f${at}`)));
    await assert.rejects(receive(many, { maxBundleEntries: 20 }), refusedAs('body-too-large', /20 entries/));
  });

  it('stops a gzip bomb at the limit without holding it', async () => {
    const bomb = async function* () {
      const zeros = Buffer.alloc(1024 * 1024);
      yield await tarOf([{ name: 'index.js', size: 0 }]).then((tar) => tar.subarray(0, 512));
      for (let megabyte = 0; megabyte < 512; megabyte++) yield zeros;
    };
    const before = process.memoryUsage().rss;
    await assert.rejects(
      receive(Readable.from(bomb()).pipe(createGzip()), { maxBundleUnpackedBytes: 16 * 1024 * 1024 }),
      refusedAs('body-too-large', /the unpacked archive is larger/),
    );
    assert.ok(process.memoryUsage().rss - before < 100 * 1024 * 1024);
  });

  it('refuses what is broken or no archive, and leaves nothing behind', async () => {
    const tar = await tarOf(file('index.js', randomBytes(50_000)));
    const zipped = gzipSync(tar);
    const left = (await readdir(bundleDir)).length;
    await assert.rejects(receive(tar.subarray(0, 20_000)), refusedAs('bad-bundle', /not a readable tar/));
    await assert.rejects(receive(tar.subarray(0, 700)), refusedAs('bad-bundle', /not a readable tar/));
    await assert.rejects(receive(zipped.subarray(0, 20_000)), refusedAs('bad-bundle', /not a readable tar/));
    await assert.rejects(receive(Buffer.from('hello world')), refusedAs('bad-bundle', /not a readable tar/));
    await assert.rejects(receive(randomBytes(4_096)), refusedAs('bad-bundle', /not a readable tar/));
    await assert.rejects(receive(Buffer.alloc(0)), refusedAs('bad-bundle', /no files/));
    assert.equal((await readdir(bundleDir)).length, left);
  });

  it('ends when the upload breaks off', async () => {
    const broken = async function* () {
      yield (await tarOf(file('index.js', randomBytes(50_000)))).subarray(0, 5_000);
      throw Object.assign(new Error('aborted'), { code: 'ECONNRESET' });
    };
    await assert.rejects(receive(Readable.from(broken())), refusedAs('bad-request', /ended before/));
  });
});
