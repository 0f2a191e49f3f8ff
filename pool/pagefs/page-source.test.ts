import assert from 'node:assert/strict';
import { mkdtemp, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import fc from 'fast-check';
import { FetchGate } from './fetch-gate.ts';
import { planAhead } from './fetch-plan.ts';
import { FrameCache } from './frame-cache.ts';
import { FrameSource } from './frame-source.ts';
import { framePages, TestReader, testImage } from './image-for-tests.ts';
import { FramePageSource, PlainPageSource } from './page-source.ts';

const pages = 32 * framePages - 5;
let dir: string;
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'thaw-page-source-'));
});
after(() => rm(dir, { recursive: true, force: true }));

async function opened(keepName?: string, cacheBytes = 1 << 20) {
  const reader = new TestReader(testImage(pages));
  const kept = Promise.withResolvers<Error | undefined>();
  const holdings = {
    cache: new FrameCache(cacheBytes),
    gate: new FetchGate(4),
    inFlight: new Map(),
    quarantined: new Map(),
  };
  const { frames, image } = reader.image;
  const source = await FramePageSource.open({
    image,
    openFrames: (onNeighbour) =>
      new FrameSource({
        frames,
        reader,
        holdings,
        onQuarantined: () => {},
        readTimeoutMs: 1_000,
        aroundBytes: 0,
        onNeighbour,
      }),
    ...(keepName === undefined ? {} : { keepPath: join(dir, keepName) }),
    onKept: kept.resolve,
  });
  return { source, reader, kept: kept.promise, content: reader.image.content };
}

describe('page source', () => {
  it('gives exactly the bytes of any range, aligned or not', async () => {
    const { source, content } = await opened();
    const ranges = fc.tuple(fc.nat(content.length - 1), fc.integer({ min: 1, max: 300_000 }));
    await fc.assert(
      fc.asyncProperty(ranges, async ([offset, size]) => {
        const inside = Math.min(size, content.length - offset);
        const { pieces } = await source.readRange(offset, inside);
        assert.ok(Buffer.concat([...pieces]).equals(content.subarray(offset, offset + inside)));
      }),
      { numRuns: 200 },
    );
  });

  it('asks nobody for zeros, and says where the slowest part came from', async () => {
    const { source, reader } = await opened();
    const hole = await source.readRange(3 * framePages * 4096, framePages * 4096);
    assert.equal(hole.origin, 'zero');
    assert.equal(reader.reads.length, 0);
    assert.equal((await source.readRange(0, 4096)).origin, 'store');
    assert.equal((await source.readRange(4096, 4096)).origin, 'memory');
  });

  it('names the zeros among pages, and nothing else', async () => {
    const { source, content } = await opened();
    const places = source.zerosIn([{ page: 3 * framePages - 2, pageCount: framePages }]);
    assert.deepEqual(
      places.map(({ offsetBytes, bytes }) => [offsetBytes / 4096, bytes.length / 4096]),
      [[3 * framePages, framePages - 2]],
    );
    for (const { offsetBytes, bytes } of places)
      assert.ok(bytes.equals(content.subarray(offsetBytes, offsetBytes + bytes.length)));
  });

  it('lets a plain file wait now and then when it stands for one that is far', async () => {
    const path = join(dir, 'plain');
    await writeFile(path, Buffer.alloc(4096));
    const source = new PlainPageSource(await open(path), path, 4096, true);
    const startMs = performance.now();
    for (let read = 0; read < 200; read++) await source.readRange(0, 4096);
    assert.ok(performance.now() - startMs >= 99);
    await source.close();
  });

  it('passes the error on when a part cannot be had, whatever else is in the range', async () => {
    const { source, reader, content } = await opened();
    reader.failing.set(5, 'store-unavailable');
    await assert.rejects(Promise.resolve(source.readRange(0, content.length)), { code: 'store-unavailable' });
  });

  it('keeps what arrives in a sparse plain file, which gets its name when it is whole', async () => {
    const { source, reader, kept, content } = await opened('whole');
    await source.readRange(0, 4096);
    await assert.rejects(stat(join(dir, 'whole')), { code: 'ENOENT' });
    await source.keepAhead(planAhead(reader.image.frames, source.missingFrames()));
    assert.equal(await kept, undefined);
    assert.ok((await readFile(join(dir, 'whole'))).equals(content));
    const { blocks } = await stat(join(dir, 'whole'));
    assert.ok(blocks * 512 < content.length, 'holes are holes');
    await assert.rejects(stat(join(dir, 'whole.partial')), { code: 'ENOENT' });
    await source.close();
  });

  it('reads kept frames from the file when memory has forgotten them', async () => {
    const { source, reader, kept, content } = await opened('small', framePages * 4096);
    await source.keepAhead(planAhead(reader.image.frames, source.missingFrames()));
    await kept;
    const readsBefore = reader.reads.length;
    const { pieces, origin } = await source.readRange(0, content.length);
    assert.equal(origin, 'file');
    assert.ok(Buffer.concat([...pieces]).equals(content));
    assert.equal(reader.reads.length, readsBefore);
    await source.close();
  });

  it('leaves nothing behind when it is closed half-way', async () => {
    const { source } = await opened('half');
    await source.readRange(0, 4096);
    await source.close();
    for (const name of ['half', 'half.partial'])
      await assert.rejects(stat(join(dir, name)), { code: 'ENOENT' });
  });

  it('pushes every page of a frame to where it belongs', async () => {
    const { source, reader, content } = await opened();
    const pushed = Buffer.alloc(content.length);
    const { failed } = await source.fetchAhead(
      planAhead(reader.image.frames, source.missingFrames()),
      async (places) => {
        for (const { offsetBytes, bytes } of places) bytes.copy(pushed, offsetBytes);
      },
    );
    assert.equal(failed, 0);
    assert.ok(pushed.equals(content));
  });
});
